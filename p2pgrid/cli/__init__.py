"""The command line: `p2pgrid VERB`, one module per family of verbs.

Rule: a verb that asks the node imports neither numpy nor trio nor libp2p; what only one verb needs is imported in it.
Only `node` and `demo` start a node. Nothing that came from a peer is unpickled here.
"""

"""The user's side: `Grid`, its futures, results and jobs; threads and one socket to the node on this machine.

Rule: `client` imports `core` and the standard library (and cloudpickle); never the node, whose process it starts.
"""

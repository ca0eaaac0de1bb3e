"""The network of a node: one hardened libp2p host, and who may connect to it.

    host        make_host, running: what the rest of a node uses          membership  who is a member, inside Noise
    dial        every address of a peer, the first that answers wins      door        limits before Noise, per address
    entrance    inbound connections and their streams, contained          tcp, yamux, streams   repairs of the library
    links       who is connected; found again, replaced, told             control, bulk   one connection: its streams
    pacing      how fast: bulk beside control, frames, redials         spared      what need not be in memory

Rule: libp2p is imported here and nowhere else in p2pgrid. It is a secure transport to us and nothing more: no DHT, no
gossip, no discovery of its. The names S1–S13 and X1–X4 in the comments are the traps of py-libp2p 0.8.1, each of which
has a test (tests/node/net); on every upgrade those tests say which repair can go.
"""

from p2pgrid.node.net.spared import spare

spare()

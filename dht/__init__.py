"""Kademlia, sans-IO: keys, table, lookup, records and the messages of libp2p's kad-dht (docs/kademlia.md)."""

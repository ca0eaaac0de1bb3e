"""Kademlia as pure machines will live here: table, lookup, records and the libp2p kad-dht messages."""

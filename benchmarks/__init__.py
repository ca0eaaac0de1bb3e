"""Benchmarks: each compares p2pgrid with its peers in one run and prints a table and JSON. `python -m benchmarks NAME`."""

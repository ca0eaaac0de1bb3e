"""Benchmarks: each compares p2pgrid with its peers in one run. `python -m benchmarks NAME`."""

"""The simulator will live here: world, network, faults, checkers and workloads that drive the very machines of the node."""

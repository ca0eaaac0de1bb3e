"""The simulator will live here: a world, a network, faults and checkers that drive the machines of the node."""

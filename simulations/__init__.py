"""The simulator: the machines of the node in virtual time, with every fault that a network and a fleet can show.

`World` is what everything happens in; see docs/simulator.md.
"""

from p2pgrid.simulations.truth import Plan
from p2pgrid.simulations.world import Violation, World

__all__ = ["Plan", "Violation", "World"]

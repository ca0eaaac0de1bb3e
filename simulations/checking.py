"""What a safety checker is: some of these methods, each of which may `fail`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from p2pgrid.simulations.world import Violation

if TYPE_CHECKING:
    from p2pgrid.node import events as e
    from p2pgrid.simulations.node import Node
    from p2pgrid.simulations.world import World


class Checker:
    """One invariant."""

    name = ""

    def __init__(self, world: World) -> None:
        self.world = world

    def fail(self, what: str, *nodes: Node) -> NoReturn:
        """Say what does not hold."""
        raise Violation(self.name, what, nodes)

    def replied(self, node: Node, effect: e.Reply) -> None:
        """Look at what a client is told."""

    def said(self, node: Node, effect: e.Send) -> None:
        """Look at a frame."""

    def handled(self, node: Node, peer: Node, kind: int, effects: list[Any]) -> None:
        """Look at what a frame of a member with few rights has led to."""

    def storing(self, node: Node, effect: e.Store) -> None:
        """Look at a commit that deletes a job."""

    def looked(self, node: Node) -> None:
        """Look at a node."""

    def lived(self, node: Node) -> None:
        """Know that a life begins."""

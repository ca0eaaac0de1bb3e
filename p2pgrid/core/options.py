"""Options of a task (stub: signatures are final)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TaskOptions:
    """The options as the user gives them."""

    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    timeout: float | None = None
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=lambda: {"cpu": 1})
    where: str | None = None
    name: str | None = None
    env: Mapping[str, str] | None = None
    detach: bool = False
    keep: Literal["value", "ref"] = "value"
    keep_for: float | str = "7d"
    copies: int | None = None
    prints: bool = True
    strict: bool = False

    def replace(self, **options: object) -> "TaskOptions":
        """Return these options with some replaced, each validated."""
        raise NotImplementedError

    def to_wire(self) -> dict[str, Any]:
        """Return only what differs from the defaults, msgpack-able, keys as in WireOptions."""
        raise NotImplementedError


@dataclass(frozen=True)
class WireOptions:
    """The options as the daemon uses them."""

    retries: int = 0
    retry_on: tuple[tuple[str, str], ...] = (("builtins", "Exception"),)
    timeout_s: float | None = None
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=lambda: {"cpu": 1.0})
    where: str | None = None
    name: str | None = None
    env: Mapping[str, str] | None = None
    detach: bool = False
    keep: str = "value"
    keep_for_s: float = 604800.0
    copies: int | None = None
    prints: bool = True
    strict: bool = False

    @classmethod
    def from_wire(cls, wire: object) -> "WireOptions":
        """Read what a client sent; ValueError if it is not options."""
        raise NotImplementedError

    def retries_on(self, mro: Sequence[tuple[str, str]]) -> bool:
        """Say whether a failure whose class chain is `mro` (key "mro" of encode_exception) is to be tried again."""
        raise NotImplementedError


def unmet(resources: Mapping[str, float], where: str | None, facts: Mapping[str, object]) -> list[str]:
    """Return the clauses that a node with these facts does not satisfy; empty = it may run the task."""
    raise NotImplementedError


def why_nowhere(options: TaskOptions | WireOptions, all_facts: Sequence[Mapping[str, object]]) -> str:
    """Return `0 of 1 nodes: gpu ≥ 1 (none has it)`, clause by clause."""
    raise NotImplementedError

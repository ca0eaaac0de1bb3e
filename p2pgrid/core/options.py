"""The options of a task: as the user gives them, as they travel, and which nodes satisfy them.

Rule: whatever a user can get wrong is refused here, when it is said, with what would be accepted; whatever a peer can
get wrong is a ValueError of `from_wire`.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from p2pgrid.core import where as conditions
from p2pgrid.core.units import format_size, parse_duration, parse_size

RETRIES_MAX = 1000
PRIORITY_MAX = 1000
COPIES_MAX = 16
NESTED_MAX = 1000
"""As deep as tasks may start tasks."""
RESOURCES_MAX = 32
RETRY_ON_MAX = 32
NAME_LENGTH_MAX = 64
RESOURCE_WORDS = ("cpu", "cpus", "gpu", "gpus", "mem", "memory")
"""What people write as an option where `resources` is meant."""
ENV_BYTES_MAX = 64 * 1024

_RESOURCE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_RESERVED_NAMES = frozenset({"last", "all"})


@dataclass(frozen=True)
class TaskOptions:
    """The options as the user gives them; `replace` is the way to make one, for it validates."""

    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    timeout: float | None = None
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=lambda: {"cpu": 1})
    where: str | None = None
    name: str | None = None
    env: Mapping[str, str] | None = field(default=None, repr=False)  # its values are nobody's to see
    detach: bool = False
    keep: Literal["value", "ref"] = "value"
    keep_for: float | str = "7d"
    copies: int | None = None
    prints: bool = True
    strict: bool = False

    def replace(self, **options: object) -> "TaskOptions":
        """Return these options with some replaced.

        Raises:
            TypeError: no such option (the nearest is named), or a value of a wrong type.
            ValueError: a value out of its range, or a `where` that is not in the grammar.
        """
        unknown = [name for name in options if name not in _CHECKS]
        if unknown:
            near = difflib.get_close_matches(unknown[0], _CHECKS, n=1, cutoff=0.0)[0]
            if unknown[0] in RESOURCE_WORDS:
                near = f"resources={{'{unknown[0]}': …}}"
            msg = f"no option {unknown[0]!r}: did you mean {near!r}? There are {', '.join(_CHECKS)}"
            raise TypeError(msg)
        checked: dict[str, Any] = {name: _CHECKS[name](name, value) for name, value in options.items()}
        return dataclasses.replace(self, **checked)

    def chosen(self) -> dict[str, Any]:
        """Return only what differs from the defaults."""
        return {
            option.name: getattr(self, option.name)
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != getattr(_DEFAULTS, option.name)
        }

    def to_wire(self) -> dict[str, Any]:
        """Return only what differs from the defaults, msgpack-able, under the names of `WireOptions`."""
        wire = self.chosen()
        if "retry_on" in wire:
            wire["retry_on"] = [[kind.__module__, kind.__qualname__] for kind in self.retry_on]
        if "timeout" in wire:
            wire["timeout_s"] = wire.pop("timeout")
        if "keep_for" in wire:
            wire["keep_for_s"] = parse_duration(wire.pop("keep_for"))
        for name in wire.keys() & {"resources", "env"}:
            wire[name] = dict(wire[name])
        return wire


@dataclass(frozen=True)
class WireOptions:
    """The options as the daemon uses them: seconds, bytes, and classes by their names."""

    retries: int = 0
    retry_on: tuple[tuple[str, str], ...] = (("builtins", "Exception"),)
    timeout_s: float | None = None
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=lambda: {"cpu": 1})
    where: str | None = None
    name: str | None = None
    env: Mapping[str, str] | None = field(default=None, repr=False)  # its values are nobody's to see
    detach: bool = False
    keep: str = "value"
    keep_for_s: float = 7 * 86400.0
    copies: int | None = None
    prints: bool = True
    strict: bool = False
    nested: int = 0
    """How many tasks are above one that was started by a task, each started by the one before it."""
    overlap: bool = False
    """Its function is `async def`: many of these tasks run at once in one worker, for they mostly wait."""

    @classmethod
    def from_wire(cls, wire: object) -> "WireOptions":
        """Read what a client or a peer sent; names that a newer version added are passed over.

        Raises:
            ValueError: it is not options.
        """
        if not isinstance(wire, Mapping):
            msg = "options: not a map"
            raise ValueError(msg)  # noqa: TRY004 - one type for everything a peer gets wrong
        try:
            known: dict[str, Any] = {
                name: check(name, wire[name]) for name, check in _WIRE_CHECKS.items() if name in wire
            }
        except TypeError as error:
            msg = f"options: {error}"
            raise ValueError(msg) from error
        return cls(**known)

    def retries_on(self, mro: Sequence[Sequence[str]]) -> bool:
        """Say whether `retry_on` names one of these classes: the `mro` of an encoded failure."""
        return any(tuple(kind) in self.retry_on for kind in mro)


def unmet(resources: Mapping[str, float], where: str | None, facts: Mapping[str, object]) -> list[str]:
    """Return the clauses that a node with these facts does not satisfy; none means that it may run the task."""
    return [need.text for need in _needs(resources, where) if not need.met(facts)]


def why_nowhere(options: TaskOptions | WireOptions, all_facts: Sequence[Mapping[str, object]]) -> str:
    """Return in how many nodes the task could run and why not in the others, clause by clause.

    For instance `0 of 3 nodes: mem ≥ 2.0 GiB (2 of 3 have it); arch == 'aarch64' (none has it)`.
    """
    total = len(all_facts)
    needs = _needs(options.resources, options.where)
    fit = sum(all(need.met(facts) for need in needs) for facts in all_facts)
    reasons = []
    for need in needs:
        having = sum(need.met(facts) for facts in all_facts)
        if having < total:
            reasons.append(f"{need.text} ({_having(having, total)})")
    head = f"{fit} of {total} nodes"
    return f"{head}: {'; '.join(reasons)}" if reasons else head


def _having(count: int, total: int) -> str:
    if count == 0:
        return "none has it"
    return f"{count} of {total} {'has' if count == 1 else 'have'} it"


@dataclass(frozen=True)
class _Need:
    """One clause: an amount of a resource, or a part of `where`."""

    text: str
    met: Callable[[Mapping[str, object]], bool]


def _needs(resources: Mapping[str, float], where: str | None) -> list[_Need]:
    needs = [_amount_need(name, amount) for name, amount in resources.items() if amount > 0]
    if where is not None:
        needs += [_clause_need(clause) for clause in conditions.clauses(conditions.parse(where))]
    return needs


def _amount_need(name: str, amount: float) -> _Need:
    def met(facts: Mapping[str, object]) -> bool:
        has = facts.get("resources")
        here = has.get(name) if isinstance(has, Mapping) else None
        return isinstance(here, int | float) and here >= amount

    return _Need(f"{name} ≥ {format_size(amount) if name == 'mem' else f'{amount:g}'}", met)


def _clause_need(clause: conditions.Where) -> _Need:
    return _Need(clause.text, lambda facts: conditions.evaluate(clause, facts))


Check = Callable[[str, object], object]
"""Takes the option's name and a value; returns the value as it is kept, or says what is accepted."""


def _wrong_type(name: str, value: object, accepted: str) -> TypeError:
    return TypeError(f"{name}={_shown(value)}: expected {accepted}, not {type(value).__name__}")


def _wrong_value(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"{name}={_shown(value)}: expected {accepted}")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= NAME_LENGTH_MAX else shown[:NAME_LENGTH_MAX] + "…"


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(name, value, "a whole number")
        if not low <= value <= high:
            raise _wrong_value(name, value, f"{low} to {high}")
        return value

    return check


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong_type(name, value, "seconds or a text such as '90s', '10m', '7d'")
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise _wrong_value(name, value, f"a duration; {error}") from error
    if seconds <= 0:
        raise _wrong_value(name, value, "more than 0 seconds")
    return seconds


def _or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _keep_for(name: str, value: object) -> float | str:
    seconds = _seconds(name, value)
    return value if isinstance(value, str) else seconds


def _retry_on(name: str, value: object) -> tuple[type[BaseException], ...]:
    kinds = value if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise _wrong_type(name, value, "an exception class or a tuple of them")
    if len(kinds) > RETRY_ON_MAX:
        raise _wrong_value(name, value, f"at most {RETRY_ON_MAX} classes")
    return tuple(kinds)


def _retry_on_names(name: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list | tuple) or len(value) > RETRY_ON_MAX:
        raise _wrong_type(name, value, "a list of [module, qualname]")
    kinds = []
    for pair in value:
        match pair:
            case [str() as module, str() as qualname]:
                kinds.append((module, qualname))
            case _:
                raise _wrong_type(name, value, "a list of [module, qualname]")
    return tuple(kinds)


def _resources(name: str, value: object) -> dict[str, float]:
    """Return the amounts as numbers; a task that does not say how much `cpu` it takes still takes one."""
    if not isinstance(value, Mapping):
        raise _wrong_type(name, value, "a dict such as {'gpu': 1, 'mem': '2GiB'}")
    if len(value) > RESOURCES_MAX:
        raise _wrong_value(name, value, f"at most {RESOURCES_MAX} resources")
    amounts: dict[str, float] = {"cpu": 1}
    for key, amount in value.items():
        if not isinstance(key, str) or not _RESOURCE_NAME.fullmatch(key):
            raise _wrong_value(name, key, "names such as 'cpu', 'mem', 'gpu'")
        amounts[key] = _amount(f"{name}[{key!r}]", amount)
    return amounts


def _amount(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong_type(name, value, "a number, or a size such as '2GiB'")
    if isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError as error:
            raise _wrong_value(name, value, f"a number or a size; {error}") from error
    if not 0 <= value < 2**63 or not math.isfinite(value):
        raise _wrong_value(name, value, "0 or more")
    return value


def _where(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a text such as \"arch == 'aarch64' and ram > 4GiB\"")
    conditions.parse(value)
    return value


def is_name(text: str) -> bool:
    """Whether a job can be called that."""
    return 0 < len(text) <= NAME_LENGTH_MAX and text.isprintable() and "/" not in text and text not in _RESERVED_NAMES


def _name(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a text")
    if not is_name(value):
        accepted = f"1 to {NAME_LENGTH_MAX} printable characters, no '/', not 'last' or 'all'"
        raise _wrong_value(name, value, accepted)
    return value


def _env(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _wrong_type(name, value, "a dict of texts")
    size = 0
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):  # without the values: one of them may be a secret
            raise TypeError(f"{name}: expected a dict of texts, {key!r:.40} is {type(text).__name__}")
        if not key or "=" in key or "\0" in key + text:
            raise _wrong_value(name, key, "names without '=' and no NUL anywhere")
        size += len(key) + len(text)
    if size > ENV_BYTES_MAX:
        raise _wrong_value(name, f"{size} characters", f"at most {ENV_BYTES_MAX} in all")
    return dict(value)


def _keep(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "'value' or 'ref'")
    if value not in {"value", "ref"}:
        raise _wrong_value(name, value, "'value' or 'ref'")
    return value


_SHARED_CHECKS: dict[str, Check] = {
    "retries": _whole(0, RETRIES_MAX),
    "priority": _whole(-PRIORITY_MAX, PRIORITY_MAX),
    "resources": _resources,
    "where": _or_none(_where),
    "name": _or_none(_name),
    "env": _or_none(_env),
    "detach": _flag,
    "keep": _keep,
    "copies": _or_none(_whole(1, COPIES_MAX)),
    "prints": _flag,
    "strict": _flag,
}
_CHECKS: dict[str, Check] = _SHARED_CHECKS | {
    "retry_on": _retry_on,
    "timeout": _or_none(_seconds),
    "keep_for": _keep_for,
}
_WIRE_CHECKS: dict[str, Check] = _SHARED_CHECKS | {
    "retry_on": _retry_on_names,
    "timeout_s": _or_none(_seconds),
    "keep_for_s": _seconds,
    "nested": _whole(0, NESTED_MAX),
    "overlap": _flag,
}
_DEFAULTS = TaskOptions()

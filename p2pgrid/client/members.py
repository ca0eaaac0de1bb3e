"""Who is in the grid, as Python sees it, and which of them a `run` goes to."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core.errors import Unschedulable
from p2pgrid.core.interpreters import offered
from p2pgrid.core.options import TaskOptions, unmet, why_nowhere
from p2pgrid.core.where import Either, parse

CONNECTED_WITHIN_S = 5.0
POLL_S = 0.05
ALIVE = "alive"
WORK = "work"
PREFIX_CHARS_MIN = 12
"""All ids begin with the same eight characters; four more tell a few nodes apart, and are a target for commands too."""


@dataclass(frozen=True, slots=True, repr=False)
class Member:
    """A node of the grid, as the asked node knows it at this moment.

    Attributes:
        id: its PeerId.
        name: what people call it; two nodes may share a name.
        status: `alive suspect dead left`; dead and left ones are listed for 60 s.
        addresses: multiaddrs at which it listens.
        slots: how many tasks it runs at once; 0 if it takes none.
        roles: what its certificate allows: of `submit work admin observe`.
        pythons: its workers' interpreters, `{"path", "version"}` each.
        version: of its p2pgrid.
        facts: what `where=` and `resources=` are matched against.
        connected: whether the asked node has a connection with it; its roles are known only then.
    """

    id: str
    name: str
    status: str
    addresses: tuple[str, ...] = ()
    slots: int = 0
    roles: tuple[str, ...] = ()
    pythons: tuple[Mapping[str, Any], ...] = ()
    version: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    connected: bool = True

    @property
    def is_worker(self) -> bool:
        """Whether it takes tasks now, as far as is known."""
        return self.status == ALIVE and self.slots > 0 and (WORK in self.roles or not self.connected)

    def __repr__(self) -> str:
        """Show what tells it from the others, in one line."""
        slots = "1 slot" if self.slots == 1 else f"{self.slots} slots"
        return f"<Member {self.name} {self.status}, {slots}, {','.join(self.roles) or 'no roles'}, {self.id}>"


def members_from(answer: Mapping[str, Any]) -> list[Member]:
    """Return the members that an answer to `members` lists; keys that a newer node added are passed over."""
    return [
        Member(
            id=one["id"],
            name=one["name"],
            status=one["status"],
            addresses=tuple(one.get("addresses", ())),
            slots=one.get("slots", 0),
            roles=tuple(one.get("roles", ())),
            pythons=tuple(one.get("pythons", ())),
            version=one.get("version", ""),
            facts=one.get("facts", {}),
            connected=one.get("connected", True),
        )
        for one in answer["members"]
    ]


def connected(ask: Callable[[], list[Member]]) -> list[Member]:
    """Return the members as soon as all alive ones are connected, or for a few seconds were not.

    Whoever has just joined hears of everybody first and is connected with each a little later.
    """
    deadline = time.monotonic() + CONNECTED_WITHIN_S
    while True:
        members = ask()
        if all(one.connected or one.status != ALIVE for one in members) or time.monotonic() > deadline:
            return members
        time.sleep(POLL_S)


def chosen(members: Iterable[Member], options: TaskOptions, where: str | None) -> dict[str, Member]:
    """Return the members that take a task with these options and satisfy `where` too, by keys that name them.

    A key is the node's name; a second node of that name is `name#` and a prefix of its id.

    Raises:
        Unschedulable: there is none; the message says which clause rules them out.
        ValueError: `where` is not in the grammar.
    """
    conditions = [one for one in (options.where, options.replace(where=where).where) if one is not None]
    workers = [one for one in members if one.is_worker]
    facts = [one.facts for one in workers]
    fit = [
        one
        for one in workers
        if any(
            not unmet(options.resources, None, facts) and not any(unmet({}, text, facts) for text in conditions)
            for facts in offered(one.facts)
        )
    ]
    if not workers:
        msg = "no alive node of the grid takes work"
        raise Unschedulable(msg, next="see who is there: p2pgrid members")
    if not fit:
        both = " and ".join(f"({one})" if isinstance(parse(one).root, Either) else one for one in conditions)
        msg = f"nothing to run on: {why_nowhere(options.replace(where=both or None), facts)}"
        raise Unschedulable(msg, next="see what they are: p2pgrid members")
    return _keyed(sorted(fit, key=lambda one: (one.name, one.id)))


def only(member: Member) -> str:
    """Return the condition that this node alone satisfies; its name is in it for whoever reads why a task waits."""
    condition = f"id == '{member.id}'"
    named = member.facts.get("name") == member.name and not {"'", "\\"} & set(member.name)
    return f"name == '{member.name}' and {condition}" if named else condition


def call_of(
    fn_or_argv: Callable[..., Any] | Sequence[str], args: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return function, arguments and keyword arguments of what is to be run: itself, or a command in the task.

    Raises:
        TypeError: neither a function nor a list of texts, or a command with arguments beside it.
        GridError: the command is a path, and there is nothing that could be started.
    """
    if callable(fn_or_argv):
        return fn_or_argv, args, {}
    if isinstance(fn_or_argv, list | tuple) and fn_or_argv and all(isinstance(one, str) for one in fn_or_argv):
        if args:
            msg = f"a command has its arguments in the list: {[*fn_or_argv, *map(str, args)]!r}"
            raise TypeError(msg)
        from p2pgrid.client.programs import Program  # ast and more, for those who run commands

        return Program(fn_or_argv), (), {}
    msg = f"run(…): expected a function, or a command such as ['uname', '-m'], not {fn_or_argv!r:.60}"
    raise TypeError(msg)


def _keyed(members: Sequence[Member]) -> dict[str, Member]:
    keyed: dict[str, Member] = {}
    for one in members:
        key = one.name
        size = PREFIX_CHARS_MIN
        while key in keyed:
            key = f"{one.name}#{one.id[:size]}"
            size += 1
        keyed[key] = one
    return keyed

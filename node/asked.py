"""What local programs ask of the node and not of its machine: who belongs (`core.messages.REQUESTS`).

Each request is a task of its own: some wait for other machines. Whoever asked may be gone when the answer is there.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.chains import key_id, parse_roles, role_names
from p2pgrid.core.errors import GridError, NotFound, error_to_wire
from p2pgrid.core.invite import ADDRESSES_MAX
from p2pgrid.node.addresses import is_address
from p2pgrid.node.events import Reply
from p2pgrid.node.identity import peer_id, peer_public
from p2pgrid.node.neighbours import meant
from p2pgrid.node.network import Network

VERBS = frozenset({"invite", "join", "leave", "promote", "revoke", "grid", "export", "recover"})
OWN_ADDRESSES_MAX = 4
"""In an invite; the rest of its room is for other members, who may be up when we are not."""
ACQUAINTED_WITHIN_S = 3.0
STRANGERS_MAX = 64
EXPIRES_S = 7 * 86_400.0
DEFAULT_ROLES = "submit,work,admin"

Rows = Sequence[dict[str, Any]]


class Asked:
    """The verbs about membership."""

    def __init__(self, network: Network, rows: Callable[[], Rows], reply: Callable[[Reply], None]) -> None:
        """Remember. `rows` gives the members as the request `members` shows them, this node first."""
        self._net = network
        self._rows = rows
        self._reply = reply

    async def answer(self, client: int, id_: int, verb: str, arguments: dict[str, Any]) -> None:
        """Answer a request of a client."""
        try:
            body = await self._answered(verb, arguments)
        except GridError as error:
            self._reply(Reply(client, m.ERROR, id_, dict(error_to_wire(error))))
        else:
            self._reply(Reply(client, m.ANSWER, id_, body))

    def _answered(self, verb: str, arguments: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        verbs: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "invite": self._invite, "join": self._join, "leave": self._leave, "promote": self._promote,
            "revoke": self._revoke, "grid": self._grid, "export": self._export, "recover": self._recover,
        }  # fmt: skip
        return verbs[verb](_Given(arguments))

    async def _invite(self, given: _Given) -> dict[str, Any]:
        await self._net.ready()
        own = self._net.dialled[:OWN_ADDRESSES_MAX]
        others = [
            f"{row['addresses'][0]}/p2p/{row['id']}"
            for row in self._rows()[1:]
            if row["addresses"] and row["status"] == "alive" and is_address(row["addresses"][0])
        ]
        addresses = [*own, *others][:ADDRESSES_MAX]
        expires_s, member_until = given.number("expires", EXPIRES_S), int(given.number("member_until", 0))
        text, facts = self._net.charter.invite(given.roles(DEFAULT_ROLES), expires_s, member_until, addresses)
        warnings = []
        if self._net.listening.loopback:
            warnings.append("this node listens for programs of this machine only: p2pgrid node --listen")
        return {"invite": text, **facts, "addresses": addresses, "warnings": warnings}

    async def _join(self, given: _Given) -> dict[str, Any]:
        return await self._net.migration.join(given.text("invite"), leave=given.flag("leave"))

    async def _leave(self, given: _Given) -> dict[str, Any]:
        return await self._net.migration.leave()

    async def _grid(self, given: _Given) -> dict[str, Any]:
        return self._net.charter.describe(self._rows())

    async def _promote(self, given: _Given) -> dict[str, Any]:
        row = self._member(given.text("target"))
        try:
            public = peer_public(row["id"])
        except ValueError:  # other members told of it
            raise NotFound(f"{row['id'][:80]!r} is not the id of a node", next="p2pgrid members") from None
        chain = self._net.charter.promote(public, given.roles(DEFAULT_ROLES))
        if row["id"] == self._net.identity.id:
            self._net.trustees.refresh()
        elif row["id"] in self._net.members:
            self._net.send(row["id"], m.L_CHAIN, [chain])
        elif row["addresses"] and self._net.links is not None:  # known, but not a neighbour: it hears it when it is up
            await self._net.reach([f"{address}/p2p/{row['id']}" for address in row["addresses"]])
        roles = role_names(self._net.charter.roles_of(public))
        return {"id": row["id"], "name": row["name"], "roles": roles}

    async def _revoke(self, given: _Given) -> dict[str, Any]:
        target = self._key(given.text("target"))
        await self._get_acquainted()
        self._net.trustees.sign_all()  # or a joiner that it let in a moment ago would have nothing that can be listed
        done = self._net.charter.revoke(target, with_admitted=given.flag("with_admitted"))
        self._net.trustees.spread(done.records, done.expelled)
        self._net.trustees.refresh()
        names = {row["id"]: row["name"] for row in self._rows()}
        revoked = self._named(done.revoked, names)
        return {
            "revoked": revoked,
            "kept": [self._named(public, names) for public in done.kept],
            "cut": [self._named(public, names) for public in done.cut],
            "warnings": list(done.notes),
        }

    async def _get_acquainted(self) -> None:
        """Meet members that are known by hearsay: whom a revoked node let in stays only if its chain was seen here."""
        links = self._net.links
        if links is None:
            return
        strangers = [
            [f"{address}/p2p/{row['id']}" for address in row["addresses"]]
            for row in self._rows()[1:]
            if row["status"] == "alive" and row["id"] not in self._net.members
        ]
        with trio.move_on_after(ACQUAINTED_WITHIN_S):
            async with trio.open_nursery() as nursery:
                for addresses in strangers[:STRANGERS_MAX]:
                    nursery.start_soon(self._net.reach, addresses)

    async def _export(self, given: _Given) -> dict[str, Any]:
        text, key = self._net.charter.export(given.text("passphrase"), self._net.dialled[:OWN_ADDRESSES_MAX])
        return {"text": text, "key": key}

    async def _recover(self, given: _Given) -> dict[str, Any]:
        joining = self._net.charter.recovering(given.text("text"), given.text("passphrase"))
        await self._net.ready()
        await self._net.migration.take_up(joining, leave=given.flag("leave"))
        return {"roles": role_names(self._net.charter.roles), "grid": self._net.charter.grid_name}

    # ---- who is meant -----------------------------------------------------------------------------------------------

    def _member(self, text: str) -> dict[str, Any]:
        """Return the row of the member that an id, a unique prefix of one or a name means."""
        found = meant(text, self._rows())
        if not found:
            raise NotFound(f"no member {text[:80]!r} is known here", next="p2pgrid members lists who is there")
        if len(found) > 1:
            listed = ", ".join(f"{row['name']} ({row['id']})" for row in found)
            raise NotFound(f"{text[:80]!r} is ambiguous: {listed}", next="use one of these ids", code="ambiguous")
        return found[0]

    def _key(self, text: str) -> bytes:
        """Return the key that is to be revoked: of a member, an invite, an exported file."""
        if meant(text, self._rows()):
            text = self._member(text)["id"]
        keys = self._net.charter.resolve(text)
        if len(keys) == 1:
            return keys[0]
        if keys:
            listed = ", ".join(key_id(key).hex() for key in keys)
            raise NotFound(f"{text[:80]!r} is ambiguous: {listed}", next="use more of its digits", code="ambiguous")
        try:
            return peer_public(text)  # a member that is not known here any more
        except ValueError:
            raise NotFound(
                f"neither a member nor an invite is called {text[:80]!r} here",
                next="p2pgrid members and p2pgrid grid show list what there is",
            ) from None

    @staticmethod
    def _named(public: bytes, names: dict[str, str]) -> dict[str, str | None]:
        node = peer_id(public)
        return {"id": node, "name": names[node]} if node in names else {"id": key_id(public).hex(), "name": None}


class _Given:
    """The arguments of a request, which a program of any version has written."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments

    def text(self, name: str) -> str:
        value = self._arguments.get(name)
        if not isinstance(value, str):
            raise self._wrong(name)
        return value.strip()

    def flag(self, name: str) -> bool:
        return bool(self._arguments.get(name, False))

    def number(self, name: str, default: float) -> float:
        value = self._arguments.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name)
        return float(value)

    def roles(self, default: str) -> int:
        value = self._arguments.get("roles", default)
        try:
            if isinstance(value, str):
                return parse_roles(value)
        except ValueError:
            pass
        raise self._wrong("roles")

    def _wrong(self, name: str) -> GridError:
        return GridError(f"{name} is missing or wrong", next="p2pgrid --help", code="usage")

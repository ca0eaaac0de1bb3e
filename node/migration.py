"""Going from one grid to another: by an invite at the start or later, by a recovery file, or out into one of its own.

    Joining (node.charter)  ->  dial its members with our new chain  ->  part from the old ones  ->  adopt  ->  arrive

Nobody is told good-bye before the disk has taken a write, and the way into a grid is on the disk before the membership.
One change at a time. What this node runs and keeps goes with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.core.chains import Reason, Refused, is_provisional, newest_signed_at, read_chain
from p2pgrid.core.errors import GridError
from p2pgrid.core.invite import bad_invite
from p2pgrid.core.trust import Judge
from p2pgrid.node import events as e
from p2pgrid.node.charter import Admitted, Joining
from p2pgrid.node.identity import peer_id, read_way, write_way

if TYPE_CHECKING:
    from p2pgrid.node.network import Network

PATIENCE_S = 3.0
"""How long a start waits for the grid that it was told to join."""
MOVED_S = 10.0
"""So long after a move, who is turned away is not worth a line."""


class Migration:
    """Where this node is on its way to.

    Attributes:
        joining: the membership that it is about to take up; None: it stays where it is.
    """

    def __init__(self, network: Network) -> None:
        self._net = network
        self.joining: Joining | None = None
        self._changing = trio.Lock()  # one change of grid at a time
        self._arrived_s = float("-inf")
        self._let_in: set[bytes] = set()  # by the grid that is being joined
        self._unarrived: GridError | None = None
        self._met_any = False
        self._announced = False

    # ---- what the network asks --------------------------------------------------------------------------------------

    @property
    def is_fresh(self) -> bool:
        """Whether members of the one grid or the other may not have heard of the move: they will have in a moment."""
        return self.joining is not None or time.monotonic() < self._arrived_s + MOVED_S

    def admit(self, joining: Joining, certificate: bytes, public: bytes) -> Admitted:
        """Judge whom we dial on the way into another grid, by that grid. Raises Refused."""
        roles = Judge(joining.grid).check(certificate, public, newest_signed_at(joining.chain))
        self._let_in.add(public)
        return Admitted(public, peer_id(public), roles, certificate, is_provisional(read_chain(certificate)))

    def met(self, public: bytes) -> None:
        """A member is connected: if it is of the grid that we are joining, we are in.

        Raises:
            GridError: the directory cannot be used; whoever waits in `join` hears it as well.
        """
        if self.joining is not None and public in self._let_in:
            try:
                self._adopt(self.joining)
            except GridError as error:
                self._unarrived = error
                raise

    def greeted(self) -> None:
        """A member is up: say so, the first time in this grid."""
        if not self._met_any:
            self._met_any = True
            self._net.log(f"in grid {self._net.charter.grid_name}: its members can run tasks here, as this user")
            self._say_joined()

    def announce(self) -> None:
        """The node has said `ready`, which comes first: now what has happened before may be said."""
        self._announced = True
        self._say_joined()

    def _say_joined(self) -> None:
        if self._announced and self._met_any:
            self._net.talk.event(None, "joined", id=self._net.identity.id, grid=self._net.charter.grid_name)

    # ---- coming and going -------------------------------------------------------------------------------------------

    async def follow(self, text: str) -> None:
        """Join at the start. Who is refused ends; who meets nobody soon is ready all the same, and goes on trying.

        Raises:
            GridError: as `join`, within that time.
        """
        done = trio.Event()

        async def go() -> None:
            try:
                await self.join(text, leave=False)
            except GridError as error:
                if not patience.cancelled_caught:
                    raise
                self._net.warn(f"{error.message}; {error.next}")  # it is ready, somebody may use it by now
            done.set()

        self._net.soon(go)
        with trio.move_on_after(PATIENCE_S) as patience:
            await done.wait()

    async def join(self, text: str, *, leave: bool) -> dict[str, Any]:
        """Go to the grid of an invite. What this node runs and keeps stays with it.

        Raises:
            GridError: the invite is no good, or this node is in a grid with others and may not leave it.
        """
        joining = self._net.charter.join(text)
        async with self._changing:
            if joining.already:
                return {**self._place(), "joined": False}
            self.may_leave(joining, leave=leave)
            self._net.open()  # who joins wants to be reached, also where a program started the node for itself
            await self._net.ready()
            if joining.grid == self._net.charter.grid:
                self._adopt(joining)
                return {**self._place(), "joined": True}
            assert self._net.membership is not None, "a network without membership"
            self.joining, self._net.membership.certificate = joining, joining.chain
            try:
                self._unarrived = None
                reached, refused = await self._net.reach(
                    [*joining.addresses, *self._net.seeker.lan.members(joining.grid)]
                )
                if self._unarrived is not None:
                    raise self._unarrived
                if self._net.charter.grid != joining.grid:
                    self._adopt_unseen(joining, refused)
            finally:
                self.joining, self._net.membership.certificate = None, self._net.charter.certificate
                self._let_in.clear()
            if not reached:
                self._net.warn(f"no member of grid {self._net.charter.grid_name} answers yet; this node keeps trying")
            return {**self._place(), "joined": True}

    def may_leave(self, joining: Joining, *, leave: bool) -> None:
        """Raise GridError if going there means to leave a grid that has other members."""
        if joining.grid != self._net.charter.grid and not self._net.charter.alone and not leave:
            raise GridError(
                f"this node is in grid {self._net.charter.grid_name}, which has other members",
                next="leave that one for it: p2pgrid join --leave INVITE",
                code="in-a-grid",
            )

    async def take_up(self, joining: Joining, *, leave: bool) -> None:
        """Be a member by what nobody has to be asked for.

        Raises:
            GridError: the directory cannot be used, or this node is in a grid with others and may not leave it.
        """
        async with self._changing:
            self.may_leave(joining, leave=leave)
            self._adopt(joining)

    def _adopt_unseen(self, joining: Joining, refused: Refused | None) -> None:
        """Nobody there let us in. Raises GridError if somebody refused, or the invite is over by our own clock."""
        try:
            if refused is not None:
                raise refused
            Judge(joining.grid).check(joining.chain, self._net.identity.public, time.time())
        except Refused as error:
            if error.reason is Reason.REVOKED:  # a member says this of an invite and of a node's key alike
                raise GridError(
                    f"the invite was revoked, or this node was, in grid {joining.grid_name}",
                    next="ask an admin of the grid for a new invite; a node that was revoked needs a new key as well: "
                    "stop it, move node.key and grid.json away, and join",
                    code="bad-invite",
                ) from None
            raise bad_invite(error.reason) from None
        self._adopt(joining)

    async def leave(self) -> dict[str, Any]:
        """Leave the grid for one of this node's own."""
        async with self._changing:
            left = self._net.charter.grid_name
            self._net.charter.need_disk()
            self._part()
            self._net.charter.found_anew()
            self._arrive(())
            self._net.talk.event(None, "left", id=self._net.identity.id, left=left, grid=self._net.charter.grid_name)
            self._net.log(f"left grid {left}; now alone in grid {self._net.charter.grid_name}")
            return {"left": left, "grid": self._net.charter.grid_name}

    def _place(self) -> dict[str, Any]:
        me = self._net.identity
        return {"grid": self._net.charter.grid_name, "id": me.id, "name": me.name, "reached": len(self._net.members)}

    def _adopt(self, joining: Joining) -> None:
        if joining.grid == self._net.charter.grid:
            self._net.charter.adopt(joining)
            self._net.trustees.refresh()
            self._come_back(joining)
            return
        self._net.charter.need_disk()
        self._part()
        self._note_way(joining.grid, joining.addresses)  # first: in the new grid without it a restart would know nobody
        self._net.charter.adopt(joining)
        self.joining = None
        self._arrive(joining.addresses)

    def _come_back(self, joining: Joining) -> None:
        """Be in the grid again, if we were out of it: members that let us go are looked for."""
        if not self._net.trustees.lost or self._net.charter.lost:
            return
        self._net.trustees.lost = False
        self._seek(joining.addresses)
        for peer, addresses in self._net.kept.items():
            if self._net.links is not None:
                self._net.links.connect(peer, addresses)
        self._net.wake()

    def _part(self) -> None:
        """Take leave of the members of the grid we are in."""
        self._net.at_once(e.Leaving())
        for peer in list(self._net.members):
            self._net.send(peer, m.L_GOODBYE, ["leaving"])
            self._net.drop(peer, "leaving")
        self._net.let_go()

    def _arrive(self, addresses: Iterable[str]) -> None:
        self._arrived_s = time.monotonic()
        self._met_any = False
        self._net.trustees.arrived()
        self._net.reachability.arrived()
        if self._net.kad is not None:
            self._net.kad.begin_anew(self._net.namespaces())
        self._seek(addresses)
        self._net.show()
        self._net.wake()

    def _seek(self, addresses: Iterable[str]) -> None:
        """Remember where members are said to be."""
        self._net.seeker.said, self._net.seeker.refusal = tuple(addresses), ""
        self._note_way(self._net.charter.grid, self._net.seeker.said)

    def _note_way(self, grid: bytes, addresses: Sequence[str]) -> None:
        """Write where members are said to be: before the next start nobody may be met."""
        folder = self._net.config.dir
        if addresses and read_way(folder, grid) != tuple(addresses):
            with contextlib.suppress(GridError):  # a full disk: the membership is written all the same
                write_way(folder, grid, addresses)

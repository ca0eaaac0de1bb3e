"""Finding members when nobody is connected: after a start, a move into another grid, a long cut.

Whoever is connected is told of the others by gossip; only a node that has nobody needs to remember where somebody was:
what the invite said, whom it met in former lives, and who announces our grid on this LAN (`lan`).

With one exception: nodes that were all started again during a cut know their side alone, and so does the other side.
Therefore whoever was met in a former life and has not been heard of in this one is dialled now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from p2pgrid.core.chains import Refused
from p2pgrid.node.addresses import advertised, interfaces, is_local, place
from p2pgrid.node.lan import Found, Lan, Notice, tag_of

if TYPE_CHECKING:
    from p2pgrid.node.net.links import Links
    from p2pgrid.node.network import Network

DIAL_WITHIN_S = 10.0
"""One address of somebody unknown: TCP and handshake."""
STAGGER_S = 0.25
ADDRESSES_TRIED_MAX = 32
"""In one round."""
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 30.0
"""Between rounds while nobody answers."""
NEAR_TRIED_MAX = 8
"""Of those, on the LAN's word."""
MEETING_MAX = 4
"""At once, of those that the LAN names; every node there hears of every other."""
LOOK_AROUND_S = 3.0
"""After that, who is on the LAN has answered."""
OTHERS_TOLD_MAX = 32
"""Other grids that are named in the log in one life of a node."""
ENOUGH = 32
"""Who is connected with so many is told of the others by them."""
MISSED_MIN_S, MISSED_MAX_S = 15.0, 300.0
"""Between attempts to find one whom nobody has spoken of, while others are connected."""


class Seeker:
    """Looks for members.

    Attributes:
        said: addresses at which the invite says that members are.
        refusal: why members do not let this node in, if that is so.
        lan: who announces itself on this LAN; nobody, unless this node does.
    """

    def __init__(self, network: Network, said: Sequence[str]) -> None:
        self._net = network
        self.said = tuple(said)
        self.refusal = ""
        self.lan = Lan(network.identity.id, self.heard, network.warn)
        self._meeting: set[str] = set()
        self._others: set[str] | None = None  # those that were named; None: not yet looked around
        self._pause_s = PAUSE_MIN_S

    async def run(self) -> None:
        """Look whenever nobody is there, until cancelled."""
        net = self._net
        while True:
            changed = net.changed
            known = [] if net.members or net.is_moving or net.trustees.lost else self._known()
            if not known:
                self._pause_s = PAUSE_MIN_S
                await changed.wait()
                continue
            assert net.links is not None, "there is no network"
            reached, refused = await reach(net.links, known)
            if reached:
                continue
            if refused is not None:
                self._refused(refused)
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, PAUSE_MAX_S)
            with trio.move_on_after(net.rng.uniform(0.5, 1.0) * pause_s):
                await changed.wait()

    async def look_for_missed(self) -> None:
        """Dial one of those met in a former life and missed in this one, with pauses that grow, until cancelled."""
        pause_s = MISSED_MIN_S
        while True:
            await trio.sleep(self._net.rng.uniform(0.5, 1.0) * pause_s)
            missed = self._missed()
            pause_s = min(2 * pause_s, MISSED_MAX_S) if missed else MISSED_MIN_S
            if missed:
                await self._net.reach(missed)

    def _missed(self) -> list[str]:
        """Return where one was who was met in a former life and not heard of in this one, if others are here."""
        net = self._net
        if not net.members or net.is_moving or net.trustees.lost:
            return []
        saved = [one for one in net.charter.saved_peers() if one[0] != net.identity.id and not net.is_known(one[0])]
        if not saved:
            return []
        peer, addresses = net.rng.choice(saved)
        return [f"{address}/p2p/{peer}" for address in addresses][:ADDRESSES_TRIED_MAX]

    def begin_anew(self) -> None:
        """The network may have healed: look at once, and with short pauses."""
        self._pause_s = PAUSE_MIN_S
        self._net.wake()

    # ---- the LAN ----------------------------------------------------------------------------------------------------

    async def on_lan(self) -> None:
        """Announce this node and look for others, if it is for others to be found; name the other grids."""
        config = self._net.config
        if config.embedded or not config.mdns or is_local(self._net.listening.addresses):
            return
        while is_local(self._net.addresses):  # started before there is a network
            await self._net.changed.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.lan.run)
            self.announce()
            await trio.sleep(LOOK_AROUND_S)
            self.looked_around()

    def looked_around(self) -> None:
        """Name the other grids that are here; those that come later are named as they come."""
        self._others = set()
        self._name_others()

    def _name_others(self) -> None:
        """Say which other grids are here that were not named yet: a few, for anybody may announce any name."""
        if self._others is None:
            return
        new = [name for name in self.lan.others(self._net.charter.grid) if name not in self._others]
        if new and len(self._others) < OTHERS_TOLD_MAX:
            self._others.update(new)
            self._net.log(f"other grids on this LAN: {', '.join(new)}; to be in one: p2pgrid join INVITE")

    def announce(self) -> None:
        """Say anew where we are and in which grid, if that has changed."""
        charter, listening = self._net.charter, self._net.listening.addresses
        where = [place(address) for address in advertised(listening, interfaces()) if not is_local([address])]
        if where:
            hosts = tuple(host for host, port in where if port == where[0][1])
            self.lan.announce(Notice(tag_of(charter.grid), charter.grid_name, where[0][1], hosts))

    def heard(self, found: Found) -> None:
        """A node of this LAN has come: dial it, unless it is known. Halves of a grid may have lost each other."""
        net, peer = self._net, found.peer
        if found.notice is None or found.notice.tag != tag_of(net.charter.grid) or net.is_moving or net.trustees.lost:
            if found.notice is not None and not net.is_moving:
                self._name_others()
            return
        if not found.dialled:
            return
        if not net.members:
            net.wake()
        elif (
            not (net.is_known(peer) or peer in self._meeting)
            and len(net.members) < ENOUGH
            and len(self._meeting) < MEETING_MAX
        ):
            self._meeting.add(peer)
            net.soon(self._meet, found)

    async def _meet(self, found: Found) -> None:
        try:
            await self._net.reach(found.dialled)
        finally:
            self._meeting.discard(found.peer)

    # ---- whom to dial -----------------------------------------------------------------------------------------------

    def _known(self) -> list[str]:
        """Return where members were or are said to be, those of the invite first."""
        saved = [
            f"{address}/p2p/{peer}"
            for peer, addresses in self._net.charter.saved_peers()
            for address in addresses
            if peer != self._net.identity.id
        ]
        near = self.lan.members(self._net.charter.grid)
        if len(near) > NEAR_TRIED_MAX:  # anybody may announce; the next round tries others
            near = self._net.rng.sample(near, NEAR_TRIED_MAX)
        return list(dict.fromkeys([*self.said, *near, *saved]))[:ADDRESSES_TRIED_MAX]

    def _refused(self, refused: Refused) -> None:
        grid = self._net.charter.grid_name
        text = f"the members of grid {grid} do not let this node in: {refused.reason.sentence}"
        if text != self.refusal:
            self.refusal = text
            self._net.warn(text)


async def reach(links: Links, addresses: Sequence[str]) -> tuple[bool, Refused | None]:
    """Dial addresses, the next before the last has failed, until one answers.

    Returns whether one did, and why a member refused us, if one did.
    """
    reached: list[str] = []
    refusals: list[Refused] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        try:
            reached.append(await links.dial(address, DIAL_WITHIN_S))
        except ConnectionError as error:  # NoConnection; importing it would import libp2p
            if reason := getattr(error, "refused", None):
                refusals.append(Refused(reason))
            failed.set()
            return
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for address in addresses:
            failed = trio.Event()
            nursery.start_soon(attempt, address, failed)
            with trio.move_on_after(STAGGER_S):
                await failed.wait()
    return bool(reached), refusals[0] if refusals else None

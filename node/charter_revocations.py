"""The revocations that this node has heard, on its disk: those that count, and those that may count later.

`core.revocation.Revocations` knows which count. Here is also kept what did not: a revocation that arrives before the
one that lists it would otherwise be lost on this node and not on the next. Two nodes that have heard the same have the
same digest, whatever the order was and whatever counts.

Rule 1: only what an admin of this grid once signed is kept, so that nobody else can fill the store.
Rule 2: `revocations.msgpack` is written before anybody is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from p2pgrid.core.chains import ADMIN, Reason, Refused, refuse
from p2pgrid.core.revocation import REVOKE_WORD, Revocation, Revocations, read_revocation
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import FRAME_MAX_CONTROL
from p2pgrid.node.charter_files import DamagedError, read_kept, set_aside, write_kept

REVOCATIONS_FILE = "revocations.msgpack"
WAITING_BYTES_MAX = 256 * 1024
"""Of what does not count. When there is more, the greatest ids go: every node makes the same choice."""
LOT_BYTES_MAX = FRAME_MAX_CONTROL - 256
_PASSES_MAX = 64


class Ledger:
    """Revocations by id, in the order in which they were heard.

    Attributes:
        counting: those that count; the judge asks it.
    """

    def __init__(self, folder: Path, judge: Judge) -> None:
        self._path = folder / REVOCATIONS_FILE
        self._judge = judge
        self._heard: dict[bytes, Revocation] = {}
        self.counting = Revocations(judge)

    def load(self) -> list[str]:
        """Take in what was kept; return what is to be told about it. What is good in a damaged file is kept."""
        damaged: DamagedError | None = None
        good: list[Revocation] = []
        try:
            packed = read_kept(self._path, self._judge.grid).get("heard", [])
            if not isinstance(packed, list):
                raise DamagedError("no list")
        except DamagedError as error:
            damaged, packed = error, []
        for one in packed:
            try:
                good.append(self.read(one))
            except Refused as error:
                damaged = DamagedError(str(error))
        # Those that counted stand first in the file, in their order: the first heard wins, now as before.
        self.hear(good)
        if damaged is None:
            return []
        note = set_aside(self._path, damaged)
        if good:
            self.write()
        return [note]

    def read(self, packed: bytes) -> Revocation:
        """Return a revocation that an admin of this grid signed, revoked since or not.

        Raises:
            Refused: it is none.
        """
        if not isinstance(packed, bytes):
            refuse(Reason.MALFORMED)
        record = read_revocation(packed)
        if not self._judge.check(record.chain, record.signer, 0, provisional=False) & ADMIN:
            refuse(Reason.NOT_ADMIN)
        self._judge.verify(record.signer, record.signature, REVOKE_WORD, record.body, Reason.SIGNATURE)
        return record

    def hear(self, records: Iterable[Revocation]) -> list[bytes]:
        """Take in revocations that were read here; return the packed form of those that are new and were kept."""
        fresh, taken = [], False
        for record in records:
            if record.id not in self._heard:
                self._heard[record.id] = record
                fresh.append(record)
                taken |= self.counting.add(record)
        if taken:
            self._settle()
        if fresh:
            self._shrink()
        return [record.packed for record in fresh if record.id in self._heard]

    def _waiting(self) -> list[Revocation]:
        counting = {record.id for record in self.counting.records()}
        return [record for record in self._heard.values() if record.id not in counting]

    def _settle(self) -> None:
        """Offer again what did not count, until nothing changes; the core ends a circle of thieves, and so do we."""
        for _ in range(_PASSES_MAX):
            taken = [self.counting.add(record) for record in self._waiting()]
            if not any(taken):
                return

    def _shrink(self) -> None:
        waiting = sorted(self._waiting(), key=lambda record: record.id)
        size = sum(len(record.body) for record in waiting)
        while size > WAITING_BYTES_MAX:
            record = waiting.pop()
            size -= len(record.body)
            del self._heard[record.id]

    # -- disk and neighbours

    def _ordered(self) -> list[bytes]:
        return [record.packed for record in (*self.counting.records(), *self._waiting())]

    def write(self, more: Sequence[Revocation] = ()) -> None:
        """Write all of them, and `more` that are about to be heard. Raises GridError: the directory cannot be used."""
        write_kept(self._path, self._judge.grid, heard=self._ordered() + [record.packed for record in more])

    def forget_all(self) -> None:
        """Remove the file: this node went to another grid."""
        with suppress(OSError):  # it names its grid, and is passed over in another
            self._path.unlink()

    def lots(self) -> list[list[bytes]]:
        """Return all of them packed, in lots of which each fits a control frame."""
        return lots(self._ordered())

    def digest(self) -> bytes:
        """Return 32 bytes that are equal on nodes that have heard the same, counting or not."""
        return sha256(b"".join(sorted(self._heard))).digest()


def lots(every: Iterable[bytes]) -> list[list[bytes]]:
    """Cut packed revocations into lots of which each fits a control frame."""
    cut: list[list[bytes]] = []
    room = 0
    for packed in every:
        size = len(packed) + 5  # its head in msgpack
        if size > room:
            cut.append([])
            room = LOT_BYTES_MAX
        cut[-1].append(packed)
        room -= size
    return cut

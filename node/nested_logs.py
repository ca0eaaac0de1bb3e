"""What tasks have printed that another task has started, until that one ends: then it is kept with its own output.

A task prints for all that it has started, in the program while it runs (`prints`) and in its log when it has ended:
the jobs of what it has started are forgotten then, with their logs. First comes what it printed itself, then what those
did, in the order in which they were last heard of. What they have started is in their texts already.

Rule: nothing is decided here, and nothing is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pgrid.core.ranges import Span
from p2pgrid.node.kept import Kept


@dataclass(slots=True)
class _Texts:
    """Of one task: what each that it has started has printed; those heard of last are last."""

    by_task: OrderedDict[tuple[bytes, int], bytes] = field(default_factory=OrderedDict)
    size: int = 0

    def put(self, task: tuple[bytes, int], text: bytes, most: int) -> None:
        self.size += len(text) - len(self.by_task.pop(task, b""))
        self.by_task[task] = text
        while self.size > most and len(self.by_task) > 1:
            self.size -= len(self.by_task.popitem(last=False)[1])


class NestedLogs:
    """What was printed below the tasks that run here."""

    def __init__(self, most: int) -> None:
        """Keep at most so many bytes for each task."""
        self._most = most
        self._texts: dict[bytes, dict[int, _Texts]] = {}

    def note(self, kept: Kept, logs: Iterable[tuple[int, bytes]]) -> None:
        """A job's tasks have printed this so far: all of it, as far as it is kept."""
        parent = kept.spec.parent
        if parent is None:
            return
        for index, text in logs:
            if text:
                texts = self._texts.setdefault(parent.job, {}).setdefault(parent.task, _Texts())
                texts.put((kept.id, index), text[-self._most :], self._most)

    def joined(
        self, job: bytes, logs: Sequence[tuple[int, bytes]], ended: Iterable[Span] = ()
    ) -> list[tuple[int, bytes]]:
        """Return what tasks of a job have printed, with what was printed below them.

        Args:
            job: the job.
            logs: what they have printed themselves.
            ended: tasks that have ended, whether they have printed or not.
        """
        below = self._texts.get(job)
        if below is None:
            return list(logs)
        own = dict(logs)
        for lo, hi in ended:
            own.update((index, b"") for index in below if lo <= index < hi and index not in own)
        return [(index, self._with(text, below.get(index))) for index, text in own.items()]

    def _with(self, text: bytes, below: _Texts | None) -> bytes:
        for more in () if below is None else below.by_task.values():
            text += more if text.endswith(b"\n") or not text else b"\n" + more
        return text[-self._most :]

    def forget(self, job: bytes, lo: int, hi: int) -> None:
        """These tasks are over."""
        below = self._texts.get(job)
        if below is None:
            return
        for index in [index for index in below if lo <= index < hi]:
            del below[index]
        if not below:
            del self._texts[job]

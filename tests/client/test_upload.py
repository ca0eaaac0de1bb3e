"""Refs among what is sent: named once as long as there is one, and kept until the node has the tasks that name them."""

from __future__ import annotations

import gc
import weakref

from p2pgrid.client.upload import Upload
from p2pgrid.core.messages import INPUT, REFS
from p2pgrid.core.record import Spec
from p2pgrid.core.ref import Ref
from p2pgrid.core.wire import Splitter

JOB = b"j" * 16


class Counted:
    """What a session counts Refs by."""

    def for_good(self) -> None:
        raise AssertionError("no Ref is pickled here")


def upload() -> Upload:
    return Upload(JOB, Spec("calls", "x", b"s" * 16, 0.0, 60.0))


def kinds(data: bytes) -> list[int]:
    return [frame.kind for frame in Splitter(1 << 20).feed(data)]


def test_a_ref_is_named_once_as_long_as_there_is_one() -> None:
    one, hold = upload(), Counted()
    ref = Ref(b"\x01" + bytes(32), 10, ("n0",), hold)
    assert kinds(one.refs([ref]) + one.append(0, 1, b"x")) == [REFS, INPUT]
    assert kinds(one.refs([ref, ref]) + one.append(1, 2, b"x")) == [INPUT]
    again = Ref(ref.raw, 10, ("n0",), Counted())  # all Refs had ended, and the value was put once more
    assert kinds(one.refs([again])) == [REFS]
    nobodys = Ref(b"\x01" + bytes(31) + b"x", 10)
    assert kinds(one.refs([nobodys]) + one.refs([nobodys])) == [REFS, REFS]


def test_the_node_has_the_tasks_before_it_hears_that_a_ref_has_ended() -> None:
    """Of the batches that name it the last acknowledgement counts."""
    one, hold = upload(), Counted()
    ends = weakref.ref(hold)
    ref = Ref(b"\x01" + bytes(32), 10, ("n0",), hold)
    for lo in (0, 1):
        one.refs([ref])
        one.append(lo, lo + 1, b"x")
    del ref, hold
    one.acknowledged("spec", 0)
    one.acknowledged("refs", 0)
    one.acknowledged("input", 1)
    gc.collect()
    assert ends() is not None
    one.acknowledged("input", 0)
    gc.collect()
    assert ends() is None


def test_what_nobody_takes_keeps_nothing() -> None:
    one, hold = upload(), Counted()
    ends = weakref.ref(hold)
    one.refs([Ref(b"\x01" + bytes(32), 10, ("n0",), hold)])
    one.append(0, 1, b"x")
    del hold
    one.refused("input", 0)
    gc.collect()
    assert ends() is None

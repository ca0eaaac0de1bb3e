"""Who may say how much at once."""

from __future__ import annotations

import pytest

from p2pgrid.core.bounds import largest_frame
from p2pgrid.core.chains import ADMIN, OBSERVE, SUBMIT, WORK
from p2pgrid.core.errors import PeerError
from p2pgrid.core.pieces import MANIFEST_BYTES_MAX
from p2pgrid.core.wire import FRAME_MAX_CONTROL, FRAME_MAX_LOCAL, Splitter, frame


def test_who_only_reads_sends_no_more_than_a_manifest() -> None:
    """Inputs and results are long; an observer has none, and a worker none before it was given tasks."""
    manifest = MANIFEST_BYTES_MAX + FRAME_MAX_CONTROL
    for given in (False, True):
        for roles in (SUBMIT, SUBMIT | WORK, ADMIN, SUBMIT | OBSERVE):
            assert largest_frame(roles, was_given_tasks=given) == FRAME_MAX_LOCAL
        assert [largest_frame(roles, was_given_tasks=given) for roles in (OBSERVE, 0)] == [manifest, manifest]
    assert (
        largest_frame(WORK, was_given_tasks=False) == largest_frame(WORK | OBSERVE, was_given_tasks=False) == manifest
    )
    assert largest_frame(WORK, was_given_tasks=True) == FRAME_MAX_LOCAL


def test_a_limit_that_changes_counts_for_frames_that_begin_later() -> None:
    """A member is promoted, or not any more what it was."""
    splitter = Splitter(4 << 20)
    long = frame(1, bytes(2 << 20))
    assert splitter.feed(long[:1_500_000]) == []
    splitter.limit = 1000
    assert len(splitter.feed(long[1_500_000:])) == 1
    with pytest.raises(PeerError, match="more than the 1000 allowed"):
        splitter.feed(long)
    splitter = Splitter(1000)
    splitter.limit = 4 << 20
    assert len(splitter.feed(long)) == 1

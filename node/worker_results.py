"""From values and exceptions to outcomes, in the worker child.

Pickle first, cloudpickle where it fails (a lambda, an instance of a class of the user's `__main__`). A value that
neither can pickle fails its own task, and no other: a packed list is taken apart to find it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import cloudpickle

from p2pgrid.core.errors import NotSerializable, QuotaExceeded
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.segments import Outcome
from p2pgrid.core.wire import pack

PROTOCOL = 5
VALUE_BYTES_MAX = 256 * 1024 * 1024
"""Largest result; as core.batch.BATCH_BYTES_MAX, which needs blake3 and cannot be imported here."""

CALLS, PACKED, FAILED = 0, 1, 2
"""Shapes of an Outcome."""

Refused = (NotSerializable, QuotaExceeded)
"""What `encoded` raises: the value cannot travel."""


def failure(error: BaseException, *, skip_frames: int = 0) -> bytes:
    """Return the data of an outcome that says what a task raised."""
    return pack(encode_exception(error, skip_frames=skip_frames))


def packed(lo: int, values: list[Any]) -> Sequence[Outcome]:
    """Return the outcomes of adjacent tasks that returned: one, if all their values can be pickled together."""
    try:
        return (Outcome(lo, lo + len(values), PACKED, encoded(values)),)
    except Refused:
        return tuple(_alone(index, value) for index, value in enumerate(values, lo))


def _alone(index: int, value: Any) -> Outcome:
    try:
        return Outcome(index, index + 1, CALLS, [encoded(value)])
    except Refused as error:
        return Outcome(index, index + 1, FAILED, failure(error, skip_frames=1))


def encoded(result: Any) -> bytes:
    """Return the pickle of a value; b"" stands for None. Raises NotSerializable or QuotaExceeded."""
    if result is None:
        return b""
    try:
        data = pickle.dumps(result, PROTOCOL)
    except Exception:  # noqa: BLE001 - whatever the user's own __reduce__ raises; the second try decides
        data = _cloudpickled(result)
    if len(data) > VALUE_BYTES_MAX:
        raise QuotaExceeded(
            f"the task returned {len(data)} bytes, more than the {VALUE_BYTES_MAX} that travel",
            next="return less, or write a file and return its path",
        )
    return data


def _cloudpickled(result: Any) -> bytes:
    try:
        return cloudpickle.dumps(result, PROTOCOL)  # type: ignore[no-any-return]
    except Exception as error:
        kind = type(result)
        raise NotSerializable(
            f"the task returned a {kind.__module__}.{kind.__qualname__} that cannot be pickled: {error}",
            next="return plain data: what was read from the file, socket or lock, not the thing itself",
        ) from error

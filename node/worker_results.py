"""From values and exceptions to outcomes, in the worker child.

Pickle first, cloudpickle where it fails (a lambda, an instance of a class of the user's `__main__`). A value that
neither can pickle fails its own task, and no other: a packed list is taken apart to find it.

A large value is written to its place in the node's shared memory and nowhere else: its arrays are not copied into a
pickle first. A packed list with large values in it is taken apart for them.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle

from p2pgrid.core.errors import GridError, NotSerializable, QuotaExceeded
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.large import INLINE_BYTES_MAX, LARGE
from p2pgrid.core.objects import Serialised, laid_out, serialise
from p2pgrid.core.segments import Outcome
from p2pgrid.core.wire import pack

PROTOCOL = 5
VALUE_BYTES_MAX = 256 * 1024 * 1024
"""Largest result that travels in a frame; as core.batch.BATCH_BYTES_MAX, which needs blake3."""

ELSEWHERE = "tasks run on any node, in an empty folder of their own: pass a file of your program as pg.File(path)"
"""Said with the error of whoever looks for a file."""

CALLS, PACKED, FAILED = 0, 1, 2
"""Shapes of an Outcome."""

Refused = (NotSerializable, QuotaExceeded)
"""What `Values.encoded` raises: the value cannot travel."""

_WHOLE = frozenset({bytes, bytearray, str})


def failure(error: BaseException, *, skip_frames: int = 0) -> bytes:
    """Return the data of an outcome that says what a task raised."""
    if isinstance(error, FileNotFoundError):
        error.add_note(ELSEWHERE)
    return pack(encode_exception(error, skip_frames=skip_frames))


class Placed(NamedTuple):
    """A value that was written into the node's shared memory: the data of its outcome (`core.large`)."""

    data: bytes


Store = Callable[[Serialised, bool], bytes]
"""Writes a value into shared memory and returns the data of its outcome; whether it is to be read as a Ref. Raises
GridError where there is no room for it."""


class Values:
    """How the values of one run leave: as pickles, large ones by shared memory (`as_ref`: all of them)."""

    def __init__(self, store: Store | None, *, as_ref: bool = False) -> None:
        self._store = store
        self._as_ref = as_ref
        self._large: list[memoryview] = []
        """Buffers of the value that is pickled now which need not go through its pickle."""

    def encoded(self, result: Any) -> bytes | Placed:
        """Return the pickle of a value, b"" for None; or where it lies. Raises NotSerializable or QuotaExceeded."""
        if self._store is None:
            return self._checked(self._pickled(result, None))
        if self._as_ref:
            return Placed(self._store(self._serialised(result), True))  # noqa: FBT003
        if result is None:
            return b""
        if type(result) in _WHOLE and len(result) > INLINE_BYTES_MAX:
            done = self._serialised(result)  # its pickle would be one more copy
        else:
            self._large.clear()
            data = self._pickled(result, self._is_small)
            if not self._large and len(data) <= INLINE_BYTES_MAX:
                return data
            done = laid_out([data], self._large)
            self._large = []
        return self._stored(result, done)

    def _stored(self, result: Any, done: Serialised) -> bytes | Placed:
        assert self._store is not None
        try:
            return Placed(self._store(done, False))  # noqa: FBT003
        except GridError:
            if done.size > VALUE_BYTES_MAX:
                raise
        # No room, or no shared memory at all: what is not too large for a frame travels in one.
        return self._checked(self._pickled(result, None))

    def _is_small(self, buffer: pickle.PickleBuffer) -> bool:
        """Say whether a buffer shall stay in the pickle; keep it beside it else."""
        try:
            view = buffer.raw()
        except BufferError:  # strided in no order at all: only pickle itself can walk it
            return True
        if view.nbytes <= INLINE_BYTES_MAX:
            return True
        self._large.append(view)
        return False

    @staticmethod
    def _pickled(result: Any, is_small: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
        if result is None:
            return b""
        try:
            return pickle.dumps(result, PROTOCOL, buffer_callback=is_small)
        except Exception:  # noqa: BLE001 - whatever the user's own __reduce__ raises; the second try decides
            return _cloudpickled(result, is_small)

    @staticmethod
    def _serialised(result: Any) -> Serialised:
        try:
            return serialise(result)
        except Exception:  # noqa: BLE001 - as above
            try:
                return serialise(result, lambda sink, keep: cloudpickle.Pickler(sink, PROTOCOL, buffer_callback=keep))
            except Exception as error:
                raise _refused(result, error) from error

    @staticmethod
    def _checked(data: bytes) -> bytes:
        if len(data) > VALUE_BYTES_MAX:
            raise QuotaExceeded(
                f"the task returned {len(data)} bytes, more than the {VALUE_BYTES_MAX} that travel",
                next="return less, or write a file and return its path",
            )
        return data

    def packed(self, lo: int, values: list[Any]) -> Sequence[Outcome]:
        """Return the outcomes of adjacent tasks that returned: one, if their values can be pickled together."""
        if not self._as_ref:
            self._large.clear()
            with contextlib.suppress(*Refused):
                data = self._pickled(values, None if self._store is None else self._is_small)
                if not self._large and (self._store is None or len(data) <= INLINE_BYTES_MAX * len(values)):
                    return (Outcome(lo, lo + len(values), PACKED, self._checked(data)),)
            self._large = []
        return tuple(self._alone(index, value) for index, value in enumerate(values, lo))

    def _alone(self, index: int, value: Any) -> Outcome:
        try:
            encoded = self.encoded(value)
        except GridError as error:
            return Outcome(index, index + 1, FAILED, failure(error, skip_frames=1))
        if isinstance(encoded, Placed):
            return Outcome(index, index + 1, LARGE, encoded.data)
        return Outcome(index, index + 1, CALLS, [encoded])


def _cloudpickled(result: Any, is_small: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
    try:
        return cloudpickle.dumps(result, PROTOCOL, buffer_callback=is_small)  # type: ignore[no-any-return]
    except Exception as error:
        raise _refused(result, error) from error


def _refused(result: Any, error: Exception) -> NotSerializable:
    kind = type(result)
    return NotSerializable(
        f"the task returned a {kind.__module__}.{kind.__qualname__} that cannot be pickled: {error}",
        next="return plain data: what was read from the file, socket or lock, not the thing itself",
    )

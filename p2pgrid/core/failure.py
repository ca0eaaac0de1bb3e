"""Exceptions across processes, never pickled (stub: signatures are final)."""

from typing import Any


def encode_exception(exc: BaseException, *, skip_frames: int = 0) -> dict[str, Any]:
    """Return msgpack-able data, bounded; skip_frames drops the caller's own outermost frames from the traceback."""
    raise NotImplementedError


def decode_exception(data: object) -> BaseException:
    """Build the exception again, or a RemoteError; never raises."""
    raise NotImplementedError

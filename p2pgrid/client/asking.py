"""One question to the node of a directory, on a connection of its own: for whoever has no session there."""

import os
import time
from pathlib import Path
from typing import Any

from p2pgrid.client.connection import ConnectionLost, connect
from p2pgrid.core.errors import GridError, NoNode, error_from_wire
from p2pgrid.core.locate import socket_of
from p2pgrid.core.messages import ANSWER, ERROR, REQUEST
from p2pgrid.core.wire import VERSION, frame

NO_SESSION = b""
ONLY_ID = 1


def ask(directory: Path, verb: str, arguments: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Return the answer of the node that runs in `directory`.

    Raises:
        NoNode: none answers there, or it ended before it answered.
        GridError: what the node says is wrong; `timed-out` if it says nothing for `timeout_s` seconds.
    """
    path = socket_of(directory)
    if path is None:
        msg = f"no node runs in {directory}"
        raise NoNode(msg)
    deadline = time.monotonic() + timeout_s
    try:
        connection = connect(path, {"v": VERSION, "session": NO_SESSION, "pid": os.getpid(), "program": ""}, timeout_s)
    except (OSError, ConnectionLost) as error:
        msg = f"the node in {directory} does not answer: {error}"
        raise NoNode(msg) from error
    try:
        connection.send(frame(REQUEST, [verb, arguments], ONLY_ID))
        while True:
            connection.patience(deadline - time.monotonic())
            for one in connection.receive():
                if one.kind == ANSWER and one.id == ONLY_ID:
                    return one.body  # type: ignore[no-any-return]
                if one.kind == ERROR:
                    raise error_from_wire(one.body["code"], one.body["message"], one.body.get("next", ""))
    except ConnectionLost as error:
        if time.monotonic() >= deadline:
            msg = f"the node in {directory} did not answer {verb!r} within {timeout_s:g} s"
            raise GridError(msg, code="timed-out") from error
        msg = f"the node in {directory} ended before it answered {verb!r}"
        raise NoNode(msg) from error
    finally:
        connection.close()

"""An arena between processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from p2pgrid.client.arena import take_over
from p2pgrid.core.objects import load

OWNER = """
import socket, sys
from pathlib import Path
import numpy as np
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.objects import serialise
from p2pgrid.node.arena import Arena, hand_over

stream = socket.socket(fileno=int(sys.argv[1]))
arena = Arena(32 << 20, Path(sys.argv[2]), in_memory=sys.argv[3] == "memfd")
value = serialise(np.arange(1_000_000))
place = arena.allocate(b"x", value.size)
arena.reserve(place)
mapped = Mapped(arena.fd, arena.size)
mapped.write(place.offset, value)
hand_over(stream, arena.fd, arena.size)
stream.sendall(b"%d %d" % arena.where(b"x"))
stream.recv(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_a_killed_owner_leaves_nothing_but_what_is_mapped(tmp_path: Path, kind: str) -> None:
    """SIGKILL: no file, no shared memory with a name; who has an object keeps it, and its memory ends with him."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours, theirs:
        names = [sys.executable, "-c", OWNER, str(theirs.fileno()), str(tmp_path), kind]
        owner = subprocess.Popen(names, pass_fds=[theirs.fileno()])
        theirs.close()
        try:
            arena = take_over(ours)
            offset, size = map(int, ours.recv(100).split())
            value = load(arena.view(offset, size, lambda: None))
        finally:
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait()

    assert np.array_equal(value, np.arange(1_000_000))
    assert list(tmp_path.iterdir()) == []
    arena.close()
    assert value[-1] == 999_999

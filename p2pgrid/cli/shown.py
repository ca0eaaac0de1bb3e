"""Values as text, JSON or pickles, made by a child: nothing that came from a peer is unpickled in this process.

The child (`shown_child`) is short-lived, has limits of its own and starts again when a value kills it; what it says is
JSON. It runs in the interpreter of this node's workers, where the classes of the values are, if anywhere here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from p2pgrid.cli import shown_child
from p2pgrid.core.large import LARGE

PATIENCE_S = 60.0
"""How long the values of one lot may take."""
READ_BYTES = 1 << 18
TREES = "trees"
"""Where a node keeps the source trees that its workers import from (`node.workers_trees`)."""
_HEX = re.compile(r"[0-9a-f]{8,128}")
ANSWER_MAX = 1 << 30


class Shown(NamedTuple):
    """One value. `text` is its repr, or why there is none."""

    text: str
    value: Any = None
    is_json: bool = False
    pickled: bytes = b""
    readable: bool = True


class Showing:
    """The child, while there is one; use it in a `with`."""

    def __init__(self, directory: Path, interpreter: str, form: str, codes: Sequence[str] = ()) -> None:
        """Show values as `repr`, `jsonl` or `pickle`; `directory` is that of the node.

        `codes` names what the job's functions are made of: the classes of values are in its source trees, where this
        node has run tasks of it.
        """
        trees = [directory / TREES / code for code in reversed(codes) if _HEX.fullmatch(code)]
        self._paths = [directory / "python", *trees]
        self._interpreter = interpreter if os.access(interpreter, os.X_OK) else sys.executable
        self._form = form
        self._child: subprocess.Popen[bytes] | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None

    def show(self, shape: int, data: bytes | Sequence[bytes], count: int, lo: int = 0) -> list[Shown]:
        """Return what can be said of `count` values in an outcome.

        Its shape is 0 (a list of pickles), 1 (one pickle) or 3 (one, and its buffers).
        As a pickle each has its index before it, counted from `lo`.
        """
        pickles = [data] if isinstance(data, bytes) else list(data)
        try:
            found = self._asked(shape, pickles, lo)
        except (OSError, _LateError) as error:
            why = f"the process that was to show it {self._buried(error)}"
            if len(pickles) > 1 and shape != LARGE:  # one of them did it; the others are no worse for that
                return [one for index, lot in enumerate(pickles, lo) for one in self.show(shape, [lot], 1, index)]
            return [Shown(f"<a value that cannot be shown: {why}>", readable=False)] * count
        shown = [_read(answer) for answer in found]
        if len(shown) == count:
            return shown
        why = shown[-1].text if shown and not shown[-1].readable else "<not as many values as there are tasks>"
        return [Shown(why, readable=False)] * count

    def _asked(self, shape: int, pickles: list[bytes], lo: int) -> list[Any]:
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        head = {"shape": shape, "sizes": [len(one) for one in pickles], "form": self._form, "lo": lo}
        child.stdin.write(json.dumps(head).encode() + b"\n" + b"".join(pickles))
        child.stdin.flush()
        deadline = time.monotonic() + PATIENCE_S
        said = bytearray()
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready or len(said) > ANSWER_MAX:
                raise _LateError
            more = os.read(child.stdout.fileno(), READ_BYTES)
            if not more:
                raise BrokenPipeError
            said += more
        answers = json.loads(said)
        return answers if isinstance(answers, list) else []

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._home = self._home or tempfile.TemporaryDirectory(prefix="p2pgrid-")
            env = {key: value for key, value in os.environ.items() if not key.startswith(("P2PGRID_", "PYTHON"))}
            paths = [str(path) for path in self._paths if path.is_dir()]  # the tasks that need a tree may run just now
            env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
            env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            self._child = subprocess.Popen(
                [self._interpreter, "-P", shown_child.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, cwd=self._home.name, env=env, start_new_session=True,
            )  # fmt: skip
        return self._child

    def _buried(self, error: Exception) -> str:
        """End the child with all it started; return how it ended."""
        child, self._child = self._child, None
        if child is None:
            return f"did not start: {error}"
        late = isinstance(error, _LateError)
        if not late:
            late = _is_late(child)
        with_signal = child.returncode is not None and child.returncode < 0
        _end(child)
        if late:
            return f"took more than {PATIENCE_S:g} s"
        return (
            f"was killed by {signal.Signals(-child.returncode).name}" if with_signal else f"ended ({child.returncode})"
        )

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """End the child."""
        if self._child is not None:
            _end(self._child)
        if self._home is not None:
            self._home.cleanup()


class _LateError(Exception):
    """The child does not answer."""


def _is_late(child: subprocess.Popen[bytes]) -> bool:
    """Say whether a child whose pipe broke still lives."""
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # it died with something unread
                pipe.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # its own session: whatever a value started goes with it
    child.wait()


def _read(answer: Any) -> Shown:
    match answer:
        case str():
            return Shown(answer)
        case {"pickle": str(data)}:
            return Shown("", pickled=base64.b64decode(data))
        case {"repr": str(said), **rest}:
            return Shown(said, rest.get("value"), is_json=True)
        case {"error": str(why)}:
            return Shown(f"<a value that cannot be read here: {why}>", readable=False)
    return Shown("<a value that cannot be read here>", readable=False)

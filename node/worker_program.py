"""Programs instead of functions, in the worker child: `exec(argv, tree)` of DESIGN §7.

    argv = [word, …]     a word is a text, ["file", path in the source tree], or ["python"]: the worker's interpreter

A program runs in the task's folder, with nothing to read, in a process group of its own, of which nothing is left when
it has ended. What it prints appears where a task's own prints do, as it comes, and is what the task returns.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any

from p2pgrid.core.errors import QuotaExceeded
from p2pgrid.core.missing import NoProgram

OUTPUT_MAX = 64 << 20
"""Bytes of either stream that a task returns."""
READ_BYTES = 1 << 16
LINGER_S = 0.2
"""How long after its end others may still write to a program's streams: what it left in the background, mostly."""
HOLE = "{}"


class Program:
    """A command line; calling it runs it."""

    def __init__(self, argv: Sequence[Any], folder: str) -> None:
        """Take the words as they travelled; `folder` is where their source tree is."""
        self._words = [self._word(word, folder) for word in argv]
        self._fixed = [type(word) is not str for word in argv]
        sent = argv[0][1:] if self._fixed[0] else ()
        self._name = f"{sent[0]}, or what its first line names," if sent else self._words[0]

    @staticmethod
    def _word(word: Any, folder: str) -> str:
        match word:
            case str():
                return word
            case ["file", str(path)]:
                return os.path.join(folder, path)  # noqa: PTH118 - a word of a command line
            case ["python"]:
                return sys.executable
        msg = "a command line with a word that this version does not know"
        raise ValueError(msg)

    def __call__(self, item: str | None = None, *, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run it, `item` in the place of each `{}`, or at the end if there is none.

        Bytes that are not UTF-8 are escaped as Python does it for names of files: `encode(errors="surrogateescape")`.

        Raises:
            NoProgram: there is no such program here, whatever the item.
            OSError: what the item names is no program here, or it cannot be started.
            CalledProcessError: it ended with another code than 0, and `check` was asked for.
            QuotaExceeded: it printed more than a task may return.
        """
        words = self._words
        if item is not None:
            words = [w if f else w.replace(HOLE, item) for w, f in zip(words, self._fixed, strict=True)]
            if words == self._words and not any(HOLE in w for w, f in zip(words, self._fixed, strict=True) if not f):
                words = [*words, item]
        try:
            out, err, code = _run(words)
        except FileNotFoundError as error:
            if words[0] != self._words[0]:
                raise
            raise NoProgram(error.errno, error.strerror, self._name) from None
        if check and code:
            raise subprocess.CalledProcessError(code, words)
        return subprocess.CompletedProcess(words, code, _text(out), _text(err))


def _text(data: bytearray) -> str:
    return data.decode(errors="surrogateescape")


def _run(words: Sequence[str]) -> tuple[bytearray, bytearray, int]:
    # A Python program would hold its lines back until it ends, for it is no terminal that it writes to.
    env = {"PYTHONUNBUFFERED": "1", **os.environ}
    env.pop("PYTHONSAFEPATH", None)  # nodes that a program starts have it; a script finds what is beside it
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, process_group=0
        )
    except FileNotFoundError as error:
        error.strerror = "no such command at the node that was to run it"
        raise
    try:
        out, err = _taken(process)
        return out, err, process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _taken(process: subprocess.Popen[bytes]) -> tuple[bytearray, bytearray]:
    """Read both streams to their end, and pass on what comes."""
    taken = bytearray(), bytearray()
    ended_s: float | None = None
    with selectors.DefaultSelector() as selector:
        for number, pipe in enumerate((process.stdout, process.stderr)):
            selector.register(pipe, selectors.EVENT_READ, number)  # type: ignore[arg-type]
        while selector.get_map() and (ended_s is None or monotonic() - ended_s < LINGER_S):
            for key, _ in selector.select(LINGER_S / 2):
                data = os.read(key.fd, READ_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                _pass_on(key.data + 1, data)
                taken[key.data].extend(data)
                if len(taken[key.data]) > OUTPUT_MAX:
                    raise QuotaExceeded(
                        f"it printed more than {OUTPUT_MAX >> 20} MiB, the most a program may return",
                        next="let it write to a file, and have a Python function return that: pg.File",
                    )
            if ended_s is None and process.poll() is not None:
                ended_s = monotonic()
    return taken


def _pass_on(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]

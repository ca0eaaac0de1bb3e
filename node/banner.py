"""What a node says to people and scripts: banner, log lines, the first and the last line, crash reports.

Rule: stdout carries `ready …` (or JSON lines) alone, all talk goes to stderr, and a reader that went away ends nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from p2pgrid import __version__
from p2pgrid.core.errors import GridError, error_to_wire
from p2pgrid.core.units import format_size
from p2pgrid.node.addresses import described, is_local
from p2pgrid.node.config import NodeConfig
from p2pgrid.node.events import Log
from p2pgrid.node.identity import Identity

LOG_BYTES_MAX = 1024 * 1024


class Talk:
    """Where a node's lines go. An embedded node's go to a file, and errors of its start to its starter as well."""

    def __init__(self, config: NodeConfig) -> None:
        self._json = config.json
        self._warnings_only = config.log_level == "warning"
        self._dated = False
        self._starter: TextIO | None = None

    def to_file(self, path: Path) -> None:
        """Send all further talk to `path`; what it held before is kept once, as `.1`."""
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_name(f"{path.name}.1"))
        self._starter = os.fdopen(os.dup(2), "w")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 2)
        os.close(fd)
        self._dated = True

    def started(self) -> None:
        """Let go of whoever started us; from now on only the file hears of errors."""
        starter, self._starter = self._starter, None
        if starter is not None:
            starter.close()

    def line(self, text: str) -> None:
        """Say one line."""
        _write(sys.stderr, f"{_now()} {text}" if self._dated else text)

    def log(self, entry: Log) -> None:
        """Say what an effect of kind Log wants said: in one line, for names and addresses in it come from others."""
        if entry.level == "warning" or not self._warnings_only:
            text = "".join(char if char.isprintable() else "·" for char in entry.text)
            self.line(f"warning: {text}" if entry.level == "warning" else text)

    def error(self, error: GridError) -> None:
        """Say why the node does not run, with the next step, in one line."""
        text = f"p2pgrid: {error}"
        if self._json:
            text = json.dumps({"v": 1, "error": error_to_wire(error)})
        self.line(text)
        if self._starter is not None:
            _write(self._starter, text)

    def event(self, plain: str | None, event: str, **said: Any) -> None:
        """Say on stdout that something happened: `plain` if it has a plain form, or a JSON line."""
        if self._json:
            _write(sys.stdout, json.dumps({"v": 1, "event": event, **said}))
        elif plain is not None:
            _write(sys.stdout, plain)


def banner(config: NodeConfig, identity: Identity, addresses: Sequence[str], known: int = 0, joining: str = "") -> str:
    """Return the lines that `p2pgrid node` begins with: only what is true of this node now.

    Args:
        config: what the node was told.
        identity: who it is.
        addresses: multiaddrs at which others can dial it; its ports are open already.
        known: how many other members it has met in former lives.
        joining: the name of the grid that it is told to join.
    """
    membership = "you are its only member and admin"
    if joining:
        membership = "joining it by an invite"
    elif identity.founded:
        membership = f"new, {membership}"
    elif known:
        membership = "1 other member known" if known == 1 else f"{known} other members known"
    free = shutil.disk_usage(config.dir).free
    pythons = ", ".join(f"{_short(path)}{_version(path)}" for path in config.python)
    tasks = f"up to {config.slots} tasks at once in {pythons}" if config.work else "no tasks (--no-work)"
    quota = f"at most {format_size(config.quota)} of " if config.quota else ""
    listens = f"{described(addresses)}   reachable: not yet known"
    if not addresses:
        listens = "nothing yet: programs here use its socket"
    elif is_local(addresses):
        listens = f"{described(addresses)}   this machine only"
    rows = [
        ("runs", tasks, "--slots --python"),
        ("listens", listens, "--listen --advertise"),
        ("keeps", f"{_short(config.dir)}, {quota}{format_size(free)} free", "--dir --quota"),
        ("trust", "tasks run as this user and can read this user's files", ""),
        ("next", "another machine: p2pgrid invite    Python: pg.Grid().map(f, xs)", ""),
    ]
    lines = [f"p2pgrid {__version__}   node {identity.name}   grid {joining or identity.grid_name}: {membership}"]
    lines += [f" {word:<8} {text:<70} {flags}".rstrip() for word, text, flags in rows]
    return "\n".join(lines)


def last_line(config: NodeConfig, waiting: Sequence[str]) -> str:
    """Return what a stopped node says about the jobs it leaves."""
    if not waiting:
        return "stopped; no job waits in the journal"
    count = "1 job waits" if len(waiting) == 1 else f"{len(waiting)} jobs wait"
    return f"stopped; {count} in the journal: {', '.join(waiting)}; p2pgrid node --dir {config.dir} continues"


def crash_report(folder: Path, error: BaseException, events: Iterable[str]) -> Path:
    """Write what is needed to mend a bug of ours: the traceback and the kinds of the last events, no values."""
    path = folder / f"crash-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.txt"
    head = f"p2pgrid {__version__}, Python {sys.version.split()[0]}, {sys.platform}, {_now()}\n\n"
    tail = f"\nlast events, oldest first: {' '.join(events)}\n"
    text = head + "".join(traceback.format_exception(error)) + tail
    try:
        path.write_text(text)
    except OSError:
        _write(sys.stderr, text)
    return path


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and home != Path("/") else str(path)


def _version(python: Path) -> str:
    """Return ` (3.11)`, or nothing where only a start would tell: that takes longer than a banner may."""
    if str(python) == sys.executable:
        return f" ({sys.version_info.major}.{sys.version_info.minor})"
    try:
        text = (python.parent.parent / "pyvenv.cfg").read_text()
    except (OSError, UnicodeError):
        return ""
    found = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", text, re.MULTILINE)
    return f" ({found[1]})" if found else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError):  # the terminal or the pipe is gone
        return

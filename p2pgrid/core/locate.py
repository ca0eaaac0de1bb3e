"""Where nodes of this machine live: the directories a program looks at, and the socket of the node in one of them.

Rule: standard library only; the client imports it, and `import p2pgrid` is to stay light. The environment is read when
asked, never at import.
"""

import json
import os
from pathlib import Path

SYSTEM_DIR = Path("/run/p2pgrid")
"""Where a node that serves the whole machine lives."""
NODE_FILE = "node.json"
"""{"pid", "socket", "id", "name", "version", "started"} of the node that runs in a directory; gone when it ends."""


def user_dir() -> Path:
    """Return the user's data folder."""
    home = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "p2pgrid"


def data_dir() -> Path:
    """Return the directory of a node that was given none: `$P2PGRID_DIR`, else the user's data folder."""
    given = os.environ.get("P2PGRID_DIR")
    return Path(given).expanduser() if given else user_dir()


def default_dirs() -> list[Path]:
    """Return the directories in which a program looks for a node, in this order."""
    given = os.environ.get("P2PGRID_DIR")
    return [*([Path(given).expanduser()] if given else []), user_dir(), SYSTEM_DIR]


def node_file(directory: Path) -> dict[str, object]:
    """Return what the node in `directory` says of itself; empty if none runs there or it was killed and cleaned up."""
    try:
        found = json.loads((directory / NODE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def socket_of(directory: Path) -> Path | None:
    """Return the socket of the node in `directory`, or None. A node that was killed leaves a path nobody answers at."""
    path = node_file(directory).get("socket")
    return Path(path) if isinstance(path, str) and Path(path).exists() else None

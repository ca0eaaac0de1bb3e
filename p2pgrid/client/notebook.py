"""Programs that are notebooks: what they are called, and what an interrupted cell leaves behind.

A cell that is interrupted cancels what was submitted in it, as Ctrl-C does with a whole program; what earlier cells
submitted goes on. Nothing here imports IPython: where it is not loaded there is no notebook.
"""

import os
import sys
import weakref
from pathlib import Path
from typing import Any

NAME_MAX = 200
KERNEL = "ipykernel"
IPYTHON = "ipython"


def shell() -> Any:
    """Return the shell of IPython that this program is; None: it is none."""
    ipython = sys.modules.get("IPython")
    get = getattr(ipython, "get_ipython", None)
    return get() if callable(get) else None


def program_name() -> str:
    """Return what the program is called in lists of jobs: the script; of a notebook its path, which a restart keeps."""
    if shell() is not None:
        named = os.environ.get("JPY_SESSION_NAME") or f"{KERNEL if KERNEL in sys.modules else IPYTHON} in {Path.cwd()}"
        return named[-NAME_MAX:]
    words = getattr(sys, "argv", None) or [""]
    path = Path(words[0] or "python")
    return path.parent.name if path.name == "__main__.py" and path.parent.name else path.name  # python -m package


class Cells:
    """Follows the cells of one shell."""

    def __init__(self, of: Any) -> None:
        """Begin now: all that the shell's program has submitted by the end of this cell belongs to it."""
        self._before: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """What was there when the cell began: receivers, and how many tasks each had."""
        of.events.register("pre_run_cell", self._begins)
        of.events.register("post_run_cell", self._ended)

    def _begins(self, *_: object) -> None:
        from p2pgrid.client.session import sessions

        self._before.clear()
        for session in sessions():
            for receiver in session.mine():
                self._before[receiver] = getattr(receiver, "count", 0)

    def _ended(self, result: Any = None, *_: object) -> None:
        from p2pgrid.client.session import sessions

        if isinstance(getattr(result, "error_in_exec", None), KeyboardInterrupt):
            for session in sessions():
                for receiver in session.mine():
                    receiver.interrupted(self._before.get(receiver))


_cells: list[Cells] = []


def follow() -> None:
    """Follow the cells of this notebook, if it is one."""
    if not _cells and (found := shell()) is not None and hasattr(found, "events"):
        _cells.append(Cells(found))

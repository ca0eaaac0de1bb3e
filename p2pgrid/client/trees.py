"""The source trees of this program: packed when first needed, and again when a file has changed.

Whoever submits holds on to a tree; a job that is under way keeps the one it began with.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pgrid.client.gathering import Gathered, contents, gather, stamp_of
from p2pgrid.client.imports import reached
from p2pgrid.client.modules import Place, locate
from p2pgrid.core import inside
from p2pgrid.core.batch import content_id
from p2pgrid.core.tree import pack_tree
from p2pgrid.core.units import format_size

KEPT_MAX = 64
LOOK_S = 0.1
"""Single submits look so often whether a file has changed; a map does each time."""
LOOK_SHARE = 20
"""And never more than one part in so many of the time, however many files there are."""


@dataclass(eq=False, slots=True)
class Tree:
    """One source tree.

    Attributes:
        id: its content id.
        packed: what travels.
        places: the modules of the program's own that are in it, and where they are.
    """

    id: bytes
    packed: bytes
    places: Mapping[str, Place]
    _gathered: Gathered
    _looked_s: float
    _look_takes_s: float = 0.0

    def is_current(self, *, look: bool) -> bool:
        """Say whether all files are as they were; unless told to `look`, as far as was seen a moment ago."""
        now = time.monotonic()
        if not look and now - self._looked_s < max(LOOK_S, LOOK_SHARE * self._look_takes_s):
            return True
        gathered = self._gathered
        same = all(stamp_of(path) == stamp for path, stamp in gathered.files.values()) and all(
            stamp_of(path) == stamp for path, stamp in gathered.watched.items()
        )
        self._looked_s = time.monotonic()
        self._look_takes_s = self._looked_s - now
        return same


_lock = threading.Lock()
_trees: OrderedDict[frozenset[str], Tree] = OrderedDict()
_told: dict[bytes, None] = {}


def tree_of(names: Iterable[str], *, look: bool = True) -> Tree | None:
    """Return the tree with these modules and all of the program's own that they import; None: none of them is its own.

    Raises:
        QuotaExceeded: it is larger than 20 MiB.
        NotSerializable: a file cannot be read, changes meanwhile, or is a link out of its package.
    """
    key = frozenset(names)
    if inside.host is not None:
        return _served(inside.host.tree(), key)
    with _lock:
        known = _trees.get(key)
        if (
            known is not None
            and known.is_current(look=look)
            and all(locate(name) == known.places.get(name) for name in key)
        ):
            _trees.move_to_end(key)
            return known
        modules = reached(key)
        if not modules:
            return None
        gathered = gather(modules)
        packed = pack_tree(contents(gathered))
        tree = Tree(content_id(packed), packed, modules, gathered, time.monotonic())
        if known is not None and known.id == tree.id:  # touched, not changed: what was sent is not sent again
            tree.packed = known.packed
        _trees[key] = tree
        _trees.move_to_end(key)
        if len(_trees) > KEPT_MAX:
            _trees.popitem(last=False)
    _tell(tree, gathered)
    return tree


def _served(tree: tuple[bytes, frozenset[str]] | None, names: frozenset[str]) -> Tree | None:
    """Return the tree that this task has come with, for what it starts; the node has what is in it."""
    if tree is None:
        return None
    return Tree(tree[0], b"", dict.fromkeys(names, Place("", None)), Gathered(), math.inf)


def _tell(tree: Tree, gathered: Gathered) -> None:
    """List once what goes along."""
    if tree.id in _told:
        return
    _told[tree.id] = None
    counts: dict[str, int] = {}
    for name in gathered.files:
        top = name.partition("/")[0]
        counts[top] = counts.get(top, 0) + 1
    files = len(gathered.files)
    of = ", ".join(sorted(counts))
    text = f"sending {files} {'file' if files == 1 else 'files'} of {of} ({format_size(gathered.bytes)}) with the job"
    if sys.stderr is not None:
        print(text, file=sys.stderr)

"""Where source trees are on a node's disk, and which of them go when there are too many.

A tree is put there by the child that first needs it (`worker_trees`); here is only decided where, and what goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

KEPT_MAX = 32
"""Trees that stay although no child serves them, the ones that were used last."""


def folder_of(trees: Path, tree: bytes) -> Path:
    """Return the folder of a tree."""
    return trees / tree.hex()


def prune(trees: Path, in_use: Collection[bytes], keep: int = KEPT_MAX) -> None:
    """Remove what was used longest ago, beyond `keep` trees, and what a child that died left half-written."""
    if not trees.is_dir():
        return
    names = {tree.hex() for tree in in_use}
    old = []
    for folder in trees.iterdir():
        if folder.name in names or folder.name.partition(".")[0] in names:
            continue
        if "." in folder.name:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            old.append((folder.stat().st_mtime, folder))
    for _, folder in sorted(old)[: max(0, len(old) - keep)]:
        shutil.rmtree(folder, ignore_errors=True)

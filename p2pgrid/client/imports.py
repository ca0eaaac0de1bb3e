"""What modules import, read from their source without running it: which modules of the program's own belong together.

Seen is every `import` statement, inside functions as well, but what stands under `if TYPE_CHECKING`. Not seen is what
is imported by a name made at run time, unless it is imported already.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2pgrid.client.modules import Place, is_everywhere, is_source, locate

MODULES_MAX = 5000

_read: dict[Path, tuple[tuple[int, int], list[tuple[int, str, tuple[str, ...]]]]] = {}
"""By file: its time and size when it was read, and its imports as (level, module, names)."""


def reached(names: Iterable[str]) -> dict[str, Place]:
    """Return all modules of the program's own that these import, directly or not, themselves included, by name."""
    found: dict[str, Place] = {}
    queue = sorted(names)
    while queue:
        while queue and len(found) < MODULES_MAX:
            name = queue.pop()
            if name in found or is_everywhere(name) or (place := locate(name)) is None:
                continue
            found[name] = place
            parent = name.rpartition(".")[0]
            queue += [parent] if parent else []
            if place.file is not None and is_source(place.file):
                queue += imported(place)
        # What a package has imported by names made at run time is there by now, and comes with the package's files.
        queue = [
            name for name in list(sys.modules) if name not in found and name.rpartition(".")[0] in found
            and found[name.rpartition(".")[0]].is_package and _is_beside(name, found)
        ]  # fmt: skip
        if len(found) >= MODULES_MAX:
            break
    return found


def _is_beside(name: str, found: dict[str, Place]) -> bool:
    """Whether a module is a file in its package's folder, which travels whole; a package inside of it does not."""
    place = locate(name)
    return place is not None and not place.is_package


def imported(place: Place) -> Iterator[str]:
    """Yield the names of the modules that a source file imports, and names that may be modules."""
    package = place.name if place.is_package else place.name.rpartition(".")[0]
    for level, module, names in _statements(place):
        base = module
        if level:
            parts = package.split(".")
            if level > len(parts):
                continue
            above = ".".join(parts[: len(parts) - level + 1])
            base = f"{above}.{module}" if module else above
        if not base or is_everywhere(base):
            continue
        yield base
        yield from (f"{base}.{name}" for name in names if name != "*")


def _statements(place: Place) -> list[tuple[int, str, tuple[str, ...]]]:
    file = place.file
    assert file is not None
    try:
        stat = file.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = _read.get(file)
        if known is not None and known[0] == stamp:
            return known[1]
        found = list(_import_statements(ast.parse(file.read_bytes(), str(file))))
    except (OSError, SyntaxError, ValueError):  # who imports it will say what is wrong with it
        return []
    _read[file] = (stamp, found)
    return found


def _import_statements(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        match node:
            case ast.Import():
                yield from ((0, alias.name, ()) for alias in node.names)
            case ast.ImportFrom():
                yield node.level, node.module or "", tuple(alias.name for alias in node.names)
            case ast.If() if _is_for_type_checkers(node.test):
                queue += node.orelse
            case ast.expr():
                pass  # no statement stands inside of one
            case _:
                queue += ast.iter_child_nodes(node)


def _is_for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )

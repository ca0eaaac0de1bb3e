"""Which modules are the program's own, and where their files are.

The standard library and what is installed in site-packages are taken to be where the workers run; everything else that
has a file (scripts beside the program, packages in the current folder, editable installs) is not, and goes along as a
source tree. p2pgrid itself is everywhere. `__main__` has no name that could be imported elsewhere: it goes by value.
"""

import importlib.machinery
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from p2pgrid.core import inside

_INSTALLED_FOLDERS = frozenset({"site-packages", "dist-packages"})
_OWN = __name__.partition(".")[0]
_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_known: dict[str, bool] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module is.

    Attributes:
        file: its source or extension; None for a package without `__init__.py`.
        folders: for a package, where its parts are.
    """

    name: str
    file: Path | None
    folders: tuple[Path, ...] = ()

    @property
    def is_package(self) -> bool:
        """Whether it can have parts."""
        return bool(self.folders)


def is_own(name: str) -> bool:
    """Say whether a module goes along with the work as a file; in a task, whether it has come along with it."""
    if inside.host is not None:
        tree = inside.host.tree()
        return tree is not None and name.partition(".")[0] in tree[1]
    known = _known.get(name)
    if known is None:
        if name == "__main__" or is_everywhere(name):
            known = False
        else:
            known = locate(name) is not None
            if name not in sys.modules:
                return known  # it may still come to be
        _known[name] = known
    return known


def is_everywhere(name: str) -> bool:
    """Say whether every worker has a module of that name, or none could be sent."""
    top = name.partition(".")[0]
    return top == _OWN or top in sys.stdlib_module_names or top in sys.builtin_module_names


def locate(name: str) -> Place | None:
    """Return where a module of the program's own is, imported or not; None if there is none, or it is installed.

    Nothing is imported for that.
    """
    module = sys.modules.get(name)
    place = _place_of(name, module) if module is not None else _find(name)
    if place is None or (not place.is_package and place.file is None):
        return None
    known = [place.file] if place.file is not None else list(place.folders)
    return None if any(_is_installed(path) for path in known) else place


def _place_of(name: str, module: ModuleType) -> Place | None:
    file = getattr(module, "__file__", None)
    folders = getattr(module, "__path__", ())
    try:
        found = tuple(Path(folder).absolute() for folder in folders if isinstance(folder, str))
    except TypeError:  # a `__path__` that is no list
        found = ()
    if not isinstance(file, str):
        return Place(name, None, tuple(folder for folder in found if folder.is_dir())) if found else None
    path = Path(file).absolute()
    if path.suffix == ".pyc":
        path = path.with_suffix(".py")
    return Place(name, path, found) if path.is_file() else None


def _find(name: str) -> Place | None:
    parent, _, last = name.rpartition(".")
    if parent:
        above = locate(parent)
        return None if above is None else _find_in(above.folders, name, last)
    try:
        spec = importlib.util.find_spec(last)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    folders = tuple(
        Path(folder).absolute() for folder in spec.submodule_search_locations or () if Path(folder).is_dir()
    )
    file = Path(spec.origin).absolute() if spec.has_location and spec.origin is not None else None
    if file is not None and not file.is_file():
        return None
    return Place(name, file, folders)


def _find_in(folders: Sequence[Path], name: str, last: str) -> Place | None:
    """Look for a part of a package, as the import system does; without its parent imported it would not."""
    bare = []
    for folder in folders:
        inside = folder / last
        for suffix in importlib.machinery.all_suffixes():
            if (file := inside / f"__init__{suffix}").is_file():
                return Place(name, file, (inside,))
            if (file := folder / f"{last}{suffix}").is_file() and not suffix.endswith(".pyc"):
                return Place(name, file)
        if inside.is_dir():
            bare.append(inside)
    return Place(name, None, tuple(bare)) if bare else None


def is_source(path: Path) -> bool:
    """Say whether a file is Python source."""
    return path.suffix == ".py"


def suffix_of(path: Path) -> str:
    """Return the suffix by which the import system knows the kind of a module's file."""
    return next((suffix for suffix in _EXTENSIONS if path.name.endswith(suffix)), path.suffix)


def _is_installed(path: Path) -> bool:
    if not _INSTALLED_FOLDERS.isdisjoint(path.parts):
        return True
    return any(path.is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> Sequence[str]:
    paths = sysconfig.get_paths()
    return [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], site.getusersitepackages()]

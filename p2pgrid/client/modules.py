"""Which modules a worker can be expected to have, and which travel by value.

The standard library and what is installed in site-packages are taken to be where the workers run; everything else (the
user's own files, notebooks, `__main__`, editable installs) is not. p2pgrid itself always is.
"""

import site
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

_INSTALLED_FOLDERS = frozenset({"site-packages", "dist-packages"})
_OWN = __name__.partition(".")[0]
_known: dict[str, bool] = {}


def travels_by_value(name: str) -> bool:
    """Say whether functions and classes of the module called `name` go along with the work."""
    known = _known.get(name)
    if known is None:
        module = sys.modules.get(name)
        if module is None:
            return False
        known = _known[name] = _is_local(name, module)
    return known


def _is_local(name: str, module: ModuleType) -> bool:
    top = name.partition(".")[0]
    if top == _OWN or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        # `__main__` is no name of the standard library, and cloudpickle sends it by value anyway.
        return False
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if not isinstance(file, str):
        return False
    if not file.endswith((".py", ".pyc")) and not hasattr(module, "__path__"):
        # A compiled extension cannot travel inside a pickle.
        return False
    return not _is_installed(Path(file).absolute())


def _is_installed(path: Path) -> bool:
    if not _INSTALLED_FOLDERS.isdisjoint(path.parts):
        return True
    paths = sysconfig.get_paths()
    folders = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], site.getusersitepackages()]
    return any(path.is_relative_to(folder) for folder in folders)

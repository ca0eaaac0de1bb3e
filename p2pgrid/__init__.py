"""p2pgrid: a compute grid without a master. `import p2pgrid as pg; pg.Grid().map(f, xs)`.

Rule: this import costs about a millisecond and pulls in nothing; names are fetched when first used. Type checkers read
`__init__.pyi` beside it, which names the same things (a test compares them).
"""

__version__ = "0.1.0"

_HOMES = {
    "concurrent.futures": ("as_completed", "wait"),
    "p2pgrid.client.defaults": ("get", "map", "put", "start", "submit"),
    "p2pgrid.client.future": ("Future",),
    "p2pgrid.client.grid": ("Grid",),
    "p2pgrid.client.job": ("Job",),
    "p2pgrid.client.localgrid": ("LocalGrid",),
    "p2pgrid.client.members": ("Member",),
    "p2pgrid.client.results": ("Results",),
    "p2pgrid.core.current": ("current", "progress"),
    "p2pgrid.core.files": ("File",),
    "p2pgrid.core.ref": ("Ref",),
    "p2pgrid.core.errors": (
        "DependencyFailed", "GridError", "MissingModule", "NoNode", "NodeGone", "NotAuthorized", "NotFound",
        "NotSerializable", "ObjectLost", "QuotaExceeded", "RemoteError", "ResultLost", "TaskCancelled",
        "TaskMemoryExceeded", "TaskTimeout", "Unschedulable", "VersionMismatch", "WorkerCrashed",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_LATER = {"Simulator": "The simulator"}

__all__ = [
    "DependencyFailed", "File", "Future", "Grid", "GridError", "Job", "LocalGrid", "Member", "MissingModule", "NoNode",
    "NodeGone", "NotAuthorized", "NotFound", "NotSerializable", "ObjectLost", "QuotaExceeded", "Ref", "RemoteError",
    "ResultLost", "Results", "TaskCancelled", "TaskMemoryExceeded", "TaskTimeout", "Unschedulable", "VersionMismatch",
    "WorkerCrashed", "as_completed", "current", "get", "map", "progress", "put", "start", "submit", "wait",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Fetch a public name from where it lives, once."""
    home = _HOME_OF.get(name)
    if home is not None:
        from importlib import import_module  # noqa: PLC0415 - this module is imported by everything

        found = getattr(import_module(home), name)
        globals()[name] = found
        return found
    if name in _LATER:
        from p2pgrid.core.errors import GridError  # noqa: PLC0415 - as above

        msg = f'p2pgrid.{name} comes with "{_LATER[name]}"'
        raise GridError(msg, code="not-yet", next='see README, "Not yet"')
    msg = f"module 'p2pgrid' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]

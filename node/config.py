"""What a node is told: `NodeConfig`, composed in one place from flags and environment.

Rule: nothing else in `node/` reads the environment, and this file reads it in `from_flags` only. A wrong value is a
`GridError` of code `usage` that names the flag. An invite is a secret: it is taken out of the environment, which all
children inherit, before anything else happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pgrid.core.errors import GridError
from p2pgrid.core.ids import NODE_NAME
from p2pgrid.core.locate import data_dir
from p2pgrid.core.units import parse_duration, parse_size
from p2pgrid.node.addresses import read_advertise, read_listen

SOCKET_PATH_MAX = 104
"""Bytes in `sun_path` where it is shortest (macOS)."""
SLOTS_MAX = 1024
FACTOR_MIN, FACTOR_MAX = 0.1, 100.0
PRESETS = ("local", "lan", "wan", "edge")
LOG_LEVELS = ("info", "warning")
INVITE_CHARACTERS_MAX = 1 << 16
"""More than any invite has; `core.invite` says what is wrong with a longer text."""
RESERVED_BYTES = 200_000_000
BYTES_PER_SLOT = 100_000_000
"""Slots by default: as many as there are cpus, and no more than (RAM − 200 MB) / 100 MB (DESIGN §10)."""

_RESOURCE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True)
class NodeConfig:
    """What a node is told. Facts about the machine are in it as well, so that a test can say what they are."""

    dir: Path
    name: str | None = None
    slots: int = 1
    python: tuple[Path, ...] = (Path(sys.executable),)
    cpus: int = 1
    ram: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    advertise: tuple[str, ...] = ()
    grace_s: float = 2.0
    quota: int | None = None
    work: bool = True
    keep: bool = True
    mdns: bool = True
    """Announce this node on the LAN and look for others there."""
    speculate: bool = True
    """Let the last tasks of its jobs run a second time where slots are idle, if they are at slow nodes."""
    queue_s: float | None = None
    """Seconds of work that it asks for ahead; None: as the machine has it."""
    guided: float | None = None
    """A node gets at most its share of what is left of a job, divided by this; None: as the machine has it."""
    connected_max: int | None = None
    """With so many members it is connected, whatever the size of the grid; None: as the machine has it."""
    open_dht: bool = False
    """Answer the DHT questions of those who are no members."""
    ephemeral: bool = False
    """The directory is removed at the end; it must not exist at the start."""
    embedded: bool = False
    """Started by a client: loopback only, log in a file, ends after its last client and job."""
    preset: str = "lan"
    join: str | None = field(default=None, repr=False)
    """The text of an invite."""
    log_level: str = "info"
    debug: bool = False
    json: bool = False

    @property
    def socket(self) -> Path:
        """Where clients of this directory connect. Short, because the directory's own path may be too long for it."""
        folder = self.dir.resolve()
        runtime = runtime_dir()
        if runtime is None:
            path = folder / "node.sock"
            if len(os.fsencode(path)) > SOCKET_PATH_MAX:
                raise _unusable(folder, "its path is too long for a socket, and no folder for sockets can be written")
            return path
        return runtime / f"{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}.sock"

    def facts(self, python: tuple[int, int, int]) -> dict[str, Any]:
        """Return what `where=` and resources of tasks are matched against; `python` is that of the workers."""
        uname = os.uname()
        return {
            "resources": {"cpu": self.slots, "mem": self.ram, **self.resources},
            "slots": self.slots if self.work else 0,
            "cpus": self.cpus,
            "ram": self.ram,
            "arch": uname.machine,
            "os": uname.sysname.lower(),
            "host": uname.nodename,
            "name": self.name,
            "python": ".".join(map(str, python)),
            "minor": python[1],
            "tags": list(self.tags),
            "keeps": self.keep,
        }


def from_flags(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> NodeConfig:
    """Compose a config of flags as typed (or from JSON), `P2PGRID_NODE_<FLAG>`, and what this machine is.

    Keys of `flags` are the flags of `p2pgrid node` with underscores; None and absent ones are looked up in `environ`.
    Lists are lists, or in the environment texts split at spaces (`python`, `listen`) and commas (the others).

    Raises:
        GridError: an unknown flag or a wrong value.
    """
    invite = _take_invite(os.environ) if environ is None else environ.get("P2PGRID_JOIN")
    environ = os.environ if environ is None else environ
    if invite and not flags.get("join"):
        flags = {**flags, "join": invite}
    unknown = sorted(set(flags) - _FLAGS.keys())
    if unknown:
        raise _usage(f"no flag {unknown[0]!r}: there are {', '.join(sorted(_FLAGS))}")
    values: dict[str, Any] = {}
    for name, (target, read) in _FLAGS.items():
        value = flags.get(name)
        if value is None:
            value = environ.get(f"P2PGRID_NODE_{name.upper()}") or None
        if value is None:
            continue
        try:
            values[target] = read(value)
        except (ValueError, TypeError) as error:
            raise _usage(f"--{name.replace('_', '-')}: {error}") from error
    if values.pop("worker_user", None):
        raise _usage("--worker-user: not yet; tasks run as the user of the node")
    values["work"] = not values.pop("no_work", False)
    values["keep"] = not values.pop("no_keep", False)
    values["mdns"] = not values.pop("no_mdns", False)
    values["speculate"] = not values.pop("no_speculate", False)
    values.setdefault("dir", data_dir())
    if not values.get("python"):
        values["python"] = (_default_python(environ),)
    values["cpus"], values["ram"] = cpus_here(), ram_here()
    if "slots" not in values:
        by_memory = (values["ram"] - RESERVED_BYTES) // BYTES_PER_SLOT
        values["slots"] = max(1, min(values["cpus"], by_memory))
    return NodeConfig(**values)


def prepare_dir(config: NodeConfig) -> None:
    """Make the directory of the node, readable by this user alone.

    Raises:
        GridError: it cannot be made or written.
    """
    if config.ephemeral and config.dir.exists():
        raise _usage(f"--ephemeral removes its directory at the end, and {config.dir} exists already")
    with explained(config.dir):
        config.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(config.dir, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(config.dir, "it is not writable")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Translate what the file system says about a folder while a node starts: full, read-only, somebody else's."""
    try:
        yield
    except OSError as error:
        raise _unusable(folder, str(error.strerror or error)) from error


def remove_dir(config: NodeConfig) -> None:
    """Remove what an ephemeral node leaves."""
    assert config.ephemeral
    shutil.rmtree(config.dir, ignore_errors=True)


# ---- where the socket is ---------------------------------------------------------------------------------------------


def runtime_dir() -> Path | None:
    """Return the folder for sockets: `$XDG_RUNTIME_DIR/p2pgrid`, else `/tmp/p2pgrid-<uid>`.

    None where neither can be written, as on a read-only root: then it is the node's own directory.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/") and Path(given).is_dir() and os.access(given, os.W_OK):
        folder = Path(given) / "p2pgrid"
        if len(os.fsencode(folder)) + len("/0123456789abcdef.sock") <= SOCKET_PATH_MAX:
            return folder
    shared = Path("/tmp")  # noqa: S108 - owner and mode of the folder in it are checked before each use
    return shared / f"p2pgrid-{os.geteuid()}" if os.access(shared, os.W_OK) else None


def prepare_runtime_dir(folder: Path) -> None:
    """Make the folder for sockets. In /tmp anybody may have made it before us: then it is refused.

    Raises:
        GridError: it belongs to somebody else or is no folder.
    """
    with explained(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise GridError(
            f"{folder} belongs to somebody else; a socket there could be read by them",
            next="set XDG_RUNTIME_DIR to a folder of your own",
            code="directory-unusable",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


# ---- what this machine has -------------------------------------------------------------------------------------------


def cpus_here() -> int:
    """Return how many cpus this process may use: affinity and cgroup quota included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


def ram_here() -> int:
    """Return the memory this process may use, in bytes, cgroup limit included."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdigit():
                ram = min(ram, int(limit))
    return ram


def _cgroups() -> list[Path]:
    """Return the cgroup v2 of this process and those above it, and the v1 groups a container sees."""
    root = Path("/sys/fs/cgroup")
    found = [root, root / "memory"]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::/"):
            own = root / line[len("0::/") :]
            found += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


# ---- reading flags ---------------------------------------------------------------------------------------------------


def _usage(message: str) -> GridError:
    return GridError(message, next="p2pgrid node --help", code="usage")


def _unusable(folder: Path, why: str) -> GridError:
    return GridError(
        f"{folder} cannot be used: {why}",
        next="name a folder of your own with room in it: p2pgrid node --dir DIR",
        code="directory-unusable",
    )


def _default_python(environ: Mapping[str, str]) -> Path:
    active = environ.get("VIRTUAL_ENV")
    if active and (Path(active) / "bin" / "python").exists():
        return Path(active) / "bin" / "python"
    return Path(sys.executable)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is wanted, not {value!r}")  # noqa: TRY004 - one type for whatever is wrong
    return value


def _node_name(value: Any) -> str:
    if not NODE_NAME.fullmatch(_text(value)):
        raise ValueError(f"{value!r} is not a name: letters, digits, dots and dashes, at most 63")
    return str(value)


def _count(value: Any) -> int:
    try:
        number = int(value)
    except ValueError as error:
        raise ValueError(f"a whole number is wanted, not {value!r}") from error
    if not 1 <= number <= SLOTS_MAX:
        raise ValueError(f"from 1 to {SLOTS_MAX} is accepted, not {value}")
    return number


def _factor(value: Any) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"a number is wanted, not {value!r}") from error
    if not FACTOR_MIN <= number <= FACTOR_MAX:
        raise ValueError(f"from {FACTOR_MIN:g} to {FACTOR_MAX:g} is accepted, not {value}")
    return number


def _flag(value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError(f"yes or no is accepted, not {value!r}")
    return text in _TRUE


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)} is accepted, not {value!r}")
        return str(value)

    return read


def _items(value: Any, separator: str | None = ",") -> list[Any]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(separator) if item.strip()]
    if isinstance(value, Iterable):
        return list(value)
    raise ValueError(f"a list is wanted, not {value!r}")


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, _items(value)))


def _take_invite(environ: MutableMapping[str, str]) -> str | None:
    """Return the invite in the environment; it is not there any more, so that no worker ever sees it."""
    found = [environ.pop(name, None) for name in ("P2PGRID_NODE_JOIN", "P2PGRID_JOIN")]
    return next(filter(None, found), None)


def _invite(value: Any) -> str:
    """Return the text of an invite: as given, on stdin (`-`) or in a file (`@FILE`)."""
    text = _text(value).strip()
    if text == "-":
        text = sys.stdin.read(INVITE_CHARACTERS_MAX)
    elif text.startswith("@"):
        path = Path(text[1:]).expanduser()
        try:
            with path.open() as file:
                text = file.read(INVITE_CHARACTERS_MAX)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    if not text.strip():
        raise ValueError("there is no invite in what was given")
    return text


def _pythons(value: Any) -> tuple[Path, ...]:
    paths = []
    for item in _items(value, None):
        found = shutil.which(str(item))
        if found is None:
            raise ValueError(f"no interpreter at {item}")
        # Absolute, but not resolved: the link in a virtual environment is what makes it one.
        paths.append(Path(found).absolute())
    return tuple(paths)


def _resources(value: Any) -> dict[str, float]:
    items = value.items() if isinstance(value, Mapping) else (str(item).partition("=")[::2] for item in _items(value))
    resources: dict[str, float] = {}
    for name, amount in items:
        if not _RESOURCE.fullmatch(name) or amount == "":
            raise ValueError(f"{name!r} is not K=V, like gpu=1 or disk=100GB")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = float(parse_size(amount))
    return resources


_FLAGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "dir": ("dir", lambda value: Path(value).expanduser()),
    "name": ("name", _node_name),
    "slots": ("slots", _count),
    "python": ("python", _pythons),
    "resource": ("resources", _resources),
    "tag": ("tags", _texts),
    "join": ("join", _invite),
    "listen": ("listen", lambda value: tuple(map(read_listen, map(_text, _items(value, None))))),
    "advertise": ("advertise", lambda value: tuple(map(read_advertise, map(_text, _items(value, None))))),
    "preset": ("preset", _one_of(PRESETS)),
    "no_work": ("no_work", _flag),
    "no_keep": ("no_keep", _flag),
    "no_mdns": ("no_mdns", _flag),
    "no_speculate": ("no_speculate", _flag),
    "queue": ("queue_s", parse_duration),
    "guided": ("guided", _factor),
    "connected": ("connected_max", _count),
    "open_dht": ("open_dht", _flag),
    "quota": ("quota", parse_size),
    "grace": ("grace_s", parse_duration),
    "worker_user": ("worker_user", _text),
    "ephemeral": ("ephemeral", _flag),
    "embedded": ("embedded", _flag),
    "debug": ("debug", _flag),
    "log_level": ("log_level", _one_of(LOG_LEVELS)),
    "json": ("json", _flag),
}
"""Flag → (field, reader). Four are no flags of the command line: `embedded` is set by the client; `queue`, `guided`
and `connected` are for tests and for trying things out, in the environment or in `pg.LocalGrid(queue="5s")`."""

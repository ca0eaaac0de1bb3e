"""Durations and sizes as people write them: `90s`, `10m`, `7d`, `1.5h`; `2GiB`, `512MB`.

Rule: inside the program a duration is a float of seconds and a size an int of bytes; text exists only at the edges,
and only this file reads or writes it.
"""

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES: dict[str, int] = {"B": 1} | {
    f"{letter}{suffix}": int(base ** (power + 1))
    for power, letter in enumerate("KMGTP")
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_BYTES_BY_LOWER = {unit.lower(): factor for unit, factor in _BYTES.items()}
_BINARY = ("PiB", "TiB", "GiB", "MiB", "KiB")
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)\s*", re.ASCII)

DURATION_MAX_S = 100 * 365 * 86400.0
SIZE_MAX = 2**63 - 1


def parse_duration(value: str | float) -> float:
    """Return seconds; a bare number already is seconds.

    Raises:
        ValueError: it is not a duration, or longer than a century.
    """
    if isinstance(value, str):
        number, unit = _split(value, "duration", "90s, 10m, 1.5h or 7d")
        if (unit or "s") not in _SECONDS:
            msg = f"not a duration: {value!r}; the units are {', '.join(_SECONDS)}"
            raise ValueError(msg)
        seconds = float(number) * _SECONDS[unit or "s"]
    else:
        seconds = float(value)
    if not 0 <= seconds <= DURATION_MAX_S:
        msg = f"not a duration: {value!r}; from 0 to 100 years is accepted"
        raise ValueError(msg)
    return seconds


def format_duration(seconds: float) -> str:
    """Return the shortest exact form in one unit: `90s`, `10m`, `7d`, `0.25s`."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:g}s" if seconds < 1e6 else f"{seconds:.0f}s"  # noqa: PLR2004 - where %g turns to exponents


def parse_size(value: str | float) -> int:
    """Return bytes; a bare number already is bytes. `KB MB GB` count in thousands, `KiB MiB GiB` in 1024.

    Raises:
        ValueError: it is not a size, or not below 2**63.
    """
    if isinstance(value, str):
        number, unit = _split(value, "size", "2GiB, 512MB or 4096")
        if unit and unit.lower() not in _BYTES_BY_LOWER:
            msg = f"not a size: {value!r}; the units are {', '.join(_BYTES)}"
            raise ValueError(msg)
        factor = _BYTES_BY_LOWER[unit.lower() or "b"]
        size: int = int(number) * factor if number.isdigit() else round(float(number) * factor)
    else:
        if not math.isfinite(value) or value != int(value):
            msg = f"not a size: {value!r}; a whole number of bytes or a text such as 2GiB is accepted"
            raise ValueError(msg)
        size = int(value)
    if not 0 <= size <= SIZE_MAX:
        msg = f"not a size: {value!r}; from 0 to 2**63 - 1 bytes is accepted"
        raise ValueError(msg)
    return size


def format_size(size: float) -> str:
    """Return a size for people, in powers of 1024: `2.0 GiB`, `512 B`."""
    for power, unit in zip(range(len(_BINARY), 0, -1), _BINARY, strict=True):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size:.0f} B"


def _split(text: str, what: str, examples: str) -> tuple[str, str]:
    found = _NUMBER_AND_UNIT.fullmatch(text)
    if found is None:
        msg = f"not a {what}: {text[:40]!r}; write it like {examples}"
        raise ValueError(msg)
    return found[1], found[2]

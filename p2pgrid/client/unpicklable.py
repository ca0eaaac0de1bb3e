"""Finding the part of a value that cannot be pickled, to name it: `args[0].conn.lock: TypeError: cannot pickle …`."""

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

Probe = Callable[[object], Exception | None]

DEPTH_MAX = 40
PROBES_MAX = 2000
SHOWN_MAX = 60


def explain(path: str, obj: object, error: Exception, probe: Probe) -> str:
    """Return the path to the innermost part of `obj` that `probe` finds unfit, and what is wrong with it."""
    seen = {id(obj)}
    probes = 0
    for _ in range(DEPTH_MAX):
        for step, part in _parts(obj):
            if id(part) in seen:
                continue
            probes += 1
            if probes > PROBES_MAX:
                break
            why = probe(part)
            if why is not None:
                seen.add(id(part))
                path, obj, error = path + step, part, why
                break
        else:
            break
    return f"{path}: {type(error).__name__}: {error}"


def _parts(obj: object) -> Iterator[tuple[str, object]]:
    """Yield what a pickle of `obj` holds, each with the step that leads there."""
    match obj:
        case dict():
            for key, value in list(obj.items()):
                yield f"[{_shown(key)}]", value
                yield f" key {_shown(key)}", key
        case list() | tuple() | set() | frozenset():
            for index, value in enumerate(obj):
                yield f"[{index}]", value
        case functools.partial():
            yield ".func", obj.func
            yield ".args", obj.args
            yield ".keywords", obj.keywords
        case types.MethodType():
            yield ".__self__", obj.__self__
            yield ".__func__", obj.__func__
        case types.FunctionType():
            yield from _captured(obj)
        case types.ModuleType():
            for name, value in list(vars(obj).items()):
                if not name.startswith("__"):
                    yield f".{name}", value
        case type():
            for name, value in list(vars(obj).items()):
                yield f".{name}", value
        case _:
            yield from _attributes(obj)


def _captured(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".__closure__[{name!r}]", cell.cell_contents
        except ValueError:
            continue
    names = dict.fromkeys(function.__code__.co_names)
    for constant in function.__code__.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(constant.co_names)
    for name in names:
        if name in function.__globals__:
            yield f".__globals__[{name!r}]", function.__globals__[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", value
    for name, value in vars(function).items():
        yield f".{name}", value


def _attributes(obj: object) -> Iterator[tuple[str, object]]:
    own: dict[str, Any] = dict(getattr(obj, "__dict__", None) or {})
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            if hasattr(obj, mangled):
                own[mangled] = getattr(obj, mangled)
    for name, value in own.items():
        yield f".{name}", value
    if not own:
        yield from _reduced(obj)


def _reduced(obj: object) -> Iterator[tuple[str, object]]:
    """Yield the parts an object without attributes names itself (arrays of objects, deques, …)."""
    try:
        reduced = obj.__reduce_ex__(5)
    except Exception:  # noqa: BLE001 - it refuses: then it is the culprit itself
        return
    if isinstance(reduced, tuple):
        _, arguments, *rest = reduced
        yield "", arguments
        state, items, pairs = (*rest, None, None, None)[:3]
        yield "", state
        if items is not None:
            yield "", list(items)
        if pairs is not None:
            yield "", dict(pairs)


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"

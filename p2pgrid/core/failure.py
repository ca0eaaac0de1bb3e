"""Exceptions across processes, never pickled.

`encode_exception` runs in the worker, `decode_exception` wherever the result is wanted. What comes back has the type,
`args`, attributes and `str()` of what was raised, or it is a `RemoteError`.

Rule 1: decoding runs no code that the sender chose beyond the `__new__` and `__str__` of an exception class this
process has loaded already. Nothing is imported, no `__init__`, `__reduce__` or property setter is called.
Rule 2: both ends are bounded and neither raises: the exception is a stranger's when it is encoded, and the data is
when it is decoded.
Rule 3: only the standard library and `p2pgrid.core.errors` may be imported here; the worker child runs this file in an
interpreter that has nothing else.

Values travel as themselves (None, bool, int of 64 bit, float, str, bytes); anything else is a list that begins with a
tag, so that no msgpack library is needed to tell a tuple from a list.
"""

import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator
from types import MemberDescriptorType, TracebackType
from typing import Any, TypeVar

from p2pgrid.core.errors import RemoteError

VALUES_BYTES_MAX = 64 * 1024
"""For `args`, and once more for the attributes."""
TEXT_MAX = 64 * 1024
TRACEBACK_MAX = 64 * 1024
BYTES_MAX = 16 * VALUES_BYTES_MAX
"""For all values and texts of one failure, causes and members included."""
OPAQUE_MAX = 1024
NAME_MAX = 256
DEPTH_MAX = 8
MEMBERS_MAX = 64
MRO_MAX = 32
NODES_MAX = 256
"""Exceptions in one failure: itself, causes, contexts and group members together."""
STAND_INS_MAX = 10_000
"""Members of groups beyond MEMBERS_MAX; they are counted, because the count is part of a group's `str()`."""

_INT_64 = range(-(2**63), 2**63)
_UNICODE_FIELDS = ("encoding", "object", "start", "end", "reason")
_UNICODE_ERRORS = (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError)
# `obj` may be anything and printing would search it for similar names; the others are restored in their own way.
_FIELDS_LEFT_OUT = frozenset({"obj", "message", "exceptions", "__suppress_context__"})

_CONTAINERS: dict[str, Any] = {"t": tuple, "l": list, "s": set, "f": frozenset}
# Two levels: with the usual six, a list that contains itself a hundred times takes minutes.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2

T = TypeVar("T")


class Opaque(str):
    """Stands for a value that did not travel: its text is the `str()` of the value, its `repr()` that of the value."""

    __slots__ = ("_shown",)
    _shown: str

    @classmethod
    def of(cls, text: str, shown: str) -> "Opaque":
        """Return the stand-in for a value with that `str()` and that `repr()`."""
        opaque = cls(text)
        opaque._shown = shown
        return opaque

    def __repr__(self) -> str:
        """Return the `repr()` of the value, so that texts made from it read the same."""
        return self._shown

    def __reduce__(self) -> tuple[Callable[[str, str], "Opaque"], tuple[str, str]]:
        """Pickle as its two texts."""
        return Opaque.of, (str.__str__(self), self._shown)


class RemoteTraceback(Exception):
    """The cause at the end of the chain of a decoded exception: the traceback as printed where it was raised."""

    def __str__(self) -> str:
        """Return the text, set apart from the local traceback."""
        return f'\n"""\n{self.args[0]}"""'


class _TooLargeError(Exception):
    """A value that does not fit."""


class _UnreadableError(Exception):
    """Data that is not a failure, or one that cannot be rebuilt faithfully."""


def encode_exception(exc: BaseException, *, skip_frames: int = 0) -> dict[str, Any]:
    """Return the exception as msgpack-able data of bounded size.

    Args:
        exc: what was raised; anything its methods do is survived.
        skip_frames: how many of the outermost frames are the caller's own and left out of the traceback.
    """
    data = _Encoder().exception(exc, depth=0) or {}
    shown = _guarded(lambda: _own(exc, "__traceback__"), lambda: None)
    for _ in range(skip_frames):
        shown = shown.tb_next if shown is not None else None
    printed = _guarded(lambda: _printed(exc, shown), lambda: "(the traceback could not be printed)\n")
    data["traceback"] = _plain(printed, TRACEBACK_MAX, keep_tail=True)
    return data


def decode_exception(data: object) -> BaseException:
    """Build the exception again, its remote traceback at the end of its chain of causes; never raises."""
    return _guarded(lambda: _decoded(data), _unreadable)


def _decoded(data: object) -> BaseException:
    exc = _Decoder().exception(data, depth=0)
    printed = data.get("traceback") if isinstance(data, dict) else None
    if isinstance(printed, str) and printed:
        _attach(exc, RemoteTraceback(_plain(printed, TRACEBACK_MAX, keep_tail=True)))
    return exc


def _unreadable() -> RemoteError:
    return RemoteError(text="(an exception that could not be read)")


def _printed(exc: BaseException, shown: TracebackType | None) -> str:
    return "".join(traceback.format_exception(type(exc), exc, shown))


def _own(exc: BaseException, name: str) -> Any:
    """Read an attribute without the `__getattribute__` of a stranger's class."""
    return object.__getattribute__(exc, name)


def _attach(exc: BaseException, carrier: RemoteTraceback) -> None:
    last = exc
    for _ in range(DEPTH_MAX + 1):
        cause = _own(last, "__cause__")
        if cause is None:
            break
        last = cause
    BaseException.__setattr__(last, "__cause__", carrier)


class _Encoder:
    """Encodes one failure; what is left of its limits is kept here."""

    def __init__(self) -> None:
        self._nodes_left = NODES_MAX
        self._bytes_left = BYTES_MAX

    def exception(self, exc: BaseException, depth: int) -> dict[str, Any] | None:
        """Return one exception without its traceback; None where a limit is reached."""
        if depth > DEPTH_MAX or self._nodes_left == 0 or type(exc) is RemoteTraceback:
            return None
        self._nodes_left -= 1
        return _guarded(lambda: self._described(exc, depth), lambda: {"text": "(an exception that hides itself)"})

    def _described(self, exc: BaseException, depth: int) -> dict[str, Any]:
        args: tuple[Any, ...] = _guarded(lambda: tuple(exc.args), lambda: ())
        lineage = [[_plain(k.__module__, NAME_MAX), _plain(k.__qualname__, NAME_MAX)] for k in _lineage(type(exc))]
        data: dict[str, Any] = {
            "module": lineage[0][0],
            "qualname": lineage[0][1],
            "mro": lineage,
            "args": None if issubclass(type(exc), BaseExceptionGroup) else self._values(args),
            "text": self._text(_guarded(lambda: str(exc), lambda: "")),
        }
        data |= self._attributes(exc, args)
        if issubclass(type(exc), BaseExceptionGroup) and isinstance(exc, BaseExceptionGroup):
            data["message"] = self._text(exc.message)
            data["count"] = len(exc.exceptions)
            members = (self.exception(member, depth + 1) for member in exc.exceptions[:MEMBERS_MAX])
            data["members"] = [member for member in members if member is not None]
        for link in ("cause", "context"):
            linked = _own(exc, f"__{link}__")
            # A cause is nearly always the context as well; once is enough.
            if linked is not None and not (link == "context" and linked is _own(exc, "__cause__")):
                data[link] = self.exception(linked, depth + 1)
        data["suppress"] = _own(exc, "__suppress_context__")
        return data

    def _attributes(self, exc: BaseException, args: tuple[Any, ...]) -> dict[str, Any]:
        entries: dict[str, Any] = _guarded(lambda: dict(vars(exc)), dict)
        budget = _Budget(min(VALUES_BYTES_MAX, self._bytes_left))
        data: dict[str, Any] = {
            "fields": [[name, _aliased(value, args, budget)] for name, value in _fields(exc)],
            "dict": [
                [_texted(name), _aliased(value, args, budget)]
                for name, value in entries.items()
                if type(name) is str and budget.has_room_for(name)
            ],
        }
        self._bytes_left -= budget.spent
        return data

    def _text(self, text: str) -> object:
        """Return a text that must come back equal, or tagged as cut where it is too long for that."""
        limit = max(OPAQUE_MAX, min(TEXT_MAX, self._bytes_left // 4))
        text = str.__str__(text)
        self._bytes_left -= 4 * min(limit, len(text))
        return _texted(text) if len(text) <= limit else ["x", _plain(text, limit)]

    def _values(self, values: tuple[Any, ...]) -> list[Any]:
        budget = _Budget(min(VALUES_BYTES_MAX, self._bytes_left))
        encoded = [_encoded(value, budget) for value in values[: VALUES_BYTES_MAX // 8]]
        self._bytes_left -= budget.spent
        return encoded


class _Budget:
    """Bytes that may still be written; a value that does not fit is replaced by its shortened `repr()`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.spent = 0

    def spend(self, count: int) -> None:
        if self.spent + count > self._limit:
            raise _TooLargeError
        self.spent += count

    def has_room_for(self, text: str) -> bool:
        try:
            self.spend(8 + 4 * len(text))
        except _TooLargeError:
            return False
        return True


def _lineage(kind: type) -> list[type]:
    return [k for k in kind.__mro__[:MRO_MAX] if k is not object]


def _fields(exc: BaseException) -> Iterator[tuple[str, object]]:
    """Yield what lives outside `__dict__`: the C fields of builtins, such as errno and filename, and `__slots__`."""
    for kind in type(exc).__mro__:
        for name, field in vars(kind).items():
            if isinstance(field, MemberDescriptorType) and name not in _FIELDS_LEFT_OUT:
                value = _field_value(field, exc)
                if value is not None:
                    yield name, value


def _field_value(field: MemberDescriptorType, exc: BaseException) -> object:
    try:
        return field.__get__(exc)
    except AttributeError:  # a slot that was never set
        return None


def _aliased(value: object, args: tuple[Any, ...], budget: _Budget) -> object:
    """Encode an attribute; one that is the very object of an argument is only pointed at."""
    for index, argument in enumerate(args[:16]):
        if value is argument and not isinstance(value, bool | int | None):
            return ["a", index]
    return _encoded(value, budget)


def _encoded(value: object, budget: _Budget) -> object:
    """Return a value as data, or its two texts where it is too large as a whole."""
    before = budget.spent
    try:
        return _safe(value, budget, DEPTH_MAX)
    except (_TooLargeError, RuntimeError):  # RuntimeError: a container that another thread changes meanwhile
        budget.spent = before
    try:
        return _opaque(value, budget)
    except _TooLargeError:
        return ["r", "…", "…"]


def _safe(value: Any, budget: _Budget, depth: int) -> object:
    """Return a value as data. Neither its methods nor its `__class__` are asked: they may be a stranger's."""
    budget.spend(8)
    kind = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, int):
        return _safe_int(int.__index__(value), budget)
    if issubclass(kind, float):
        return float.__float__(value)
    if kind is str:
        budget.spend(len(value) if value.isascii() else 4 * len(value))
        return _texted(value)
    if kind is bytes or kind is bytearray:
        budget.spend(len(value))
        return value if kind is bytes else ["y", bytes(value)]
    if depth == 0:
        return _opaque(value, budget)
    for tag, container in _CONTAINERS.items():
        if issubclass(kind, container):
            return [tag, [_safe(item, budget, depth - 1) for item in container.__iter__(value)]]
    if issubclass(kind, dict):
        items = dict.items(value)
        return ["d", [[_safe(key, budget, depth - 1), _safe(item, budget, depth - 1)] for key, item in items]]
    return _opaque(value, budget)


def _safe_int(value: int, budget: _Budget) -> object:
    if value in _INT_64:
        return value
    budget.spend(value.bit_length() // 4)
    # Hexadecimal: decimal texts of more than 4,300 digits are refused by Python itself.
    return ["i", f"{value:x}"]


def _opaque(value: object, budget: _Budget) -> list[object]:
    """Return the two texts of a value that does not travel.

    Raises:
        _TooLargeError: there is no room even for them.
    """
    builtin = type(value) in {tuple, list, set, frozenset, dict, str, bytes, bytearray, int}
    shown = _guarded(lambda: _SHORT.repr(value) if builtin else repr(value), lambda: f"<{type(value).__name__}>")
    text = shown if builtin else _guarded(lambda: str(value), lambda: shown)
    shown, text = _shortened(shown), _shortened(text)
    budget.spend(8 + 4 * len(shown + text))
    return ["r", _texted(text), _texted(shown)]


def _shortened(text: str) -> str:
    text = str.__str__(text)
    return text if len(text) <= OPAQUE_MAX else text[: OPAQUE_MAX - 1] + "…"


def _texted(text: str) -> object:
    """Return a text as it is, or tagged where it holds lone surrogates (file names do), which msgpack refuses."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return ["u", text.encode("utf-8", "surrogatepass")]


def _plain(text: object, limit: int, *, keep_tail: bool = False) -> str:
    """Return a text for people: encodable, and cut to `limit` bytes at the end that matters less."""
    data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else b""
    if len(data) > limit:
        data = b"...\n" + data[4 - limit :] if keep_tail else data[: limit - 3] + b"..."
    return data.decode("utf-8", "ignore")


def _guarded(act: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Call into a stranger's class, whose methods may do anything."""
    try:
        return act()
    except Exception:  # noqa: BLE001 - the border to strangers
        return otherwise()


class _Decoder:
    """Decodes one failure; what is left of its limits is kept here."""

    def __init__(self) -> None:
        self._nodes_left = NODES_MAX
        self._stand_ins_left = STAND_INS_MAX

    def exception(self, data: object, depth: int) -> BaseException:
        """Return one exception with its causes; a RemoteError where it cannot be rebuilt."""
        self._nodes_left -= 1
        if not isinstance(data, dict) or depth > DEPTH_MAX or self._nodes_left < 0:
            return _unreadable()
        exc = _guarded(lambda: self._faithful(data, depth), lambda: None)
        if exc is None:
            exc = _guarded(lambda: _remote(data), _unreadable)
        for link in ("cause", "context"):
            if isinstance(data.get(link), dict):
                BaseException.__setattr__(exc, f"__{link}__", self.exception(data[link], depth + 1))
        if _own(exc, "__context__") is None:
            BaseException.__setattr__(exc, "__context__", _own(exc, "__cause__"))
        BaseException.__setattr__(exc, "__suppress_context__", data.get("suppress") is True)
        return exc

    def _faithful(self, data: dict[str, Any], depth: int) -> BaseException:
        """Return the exception in its own type, with the text it had.

        Raises:
            Exception: whatever the data or the class makes of it; the caller falls back to `RemoteError`.
        """
        kind = _loaded_class(data["module"], data["qualname"])
        args = tuple(_value(arg, (), DEPTH_MAX) for arg in data["args"]) if data["args"] is not None else ()
        fields = {name: _value(value, args, DEPTH_MAX) for name, value in data["fields"]}
        if issubclass(kind, BaseExceptionGroup):
            # Not the class's own __new__: it may want more than it hands on, and what it sets is in the attributes.
            members = self._members(data, depth)
            exc: BaseException = BaseExceptionGroup.__new__(kind, _value(data["message"], (), 0), members)
        else:
            exc = kind.__new__(kind, *args)
            BaseException.__setattr__(exc, "args", args)
        _require(type(exc) is kind)
        if isinstance(exc, _UNICODE_ERRORS):
            _restore_unicode(exc, fields)
            BaseException.__setattr__(exc, "args", args)
        else:
            _restore_fields(exc, fields)
        vars(exc).update({_name(name): _value(value, args, DEPTH_MAX) for name, value in data["dict"]})
        _require(str(exc) == _value(data["text"], (), 0))
        traceback.format_exception_only(exc)  # what cannot be printed would fail in the user's hands
        return exc

    def _members(self, data: dict[str, Any], depth: int) -> list[BaseException]:
        members = [self.exception(member, depth + 1) for member in data["members"][:MEMBERS_MAX]]
        missing = data["count"] - len(members)
        _require(0 <= missing <= self._stand_ins_left)
        self._stand_ins_left -= missing
        stand_in = RemoteError(text=f"(one of {missing} members that did not travel)")
        return members + [stand_in] * missing


def _remote(data: dict[str, Any]) -> RemoteError:
    """Return what is known of an exception that cannot be rebuilt here."""
    module, qualname, printed = (data.get(key) for key in ("module", "qualname", "traceback"))
    text = data.get("text")
    if isinstance(text, list):
        text = text[1] if text[0] == "x" else _value(text, (), 0)
    return RemoteError(
        _plain(module, OPAQUE_MAX),
        _plain(qualname, OPAQUE_MAX),
        _plain(text, TEXT_MAX),
        _plain(printed, TRACEBACK_MAX, keep_tail=True),
    )


def _loaded_class(module: object, qualname: object) -> type[BaseException]:
    """Find a class without importing and without running code: neither getattr nor a module's `__getattr__`."""
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise _UnreadableError
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = vars(found)[part]
    if not isinstance(found, type) or not issubclass(found, BaseException):
        raise _UnreadableError
    return found


def _restore_unicode(exc: UnicodeError, fields: dict[str, Any]) -> None:
    """Set the fields by the constructor, which checks types; ranges are checked here, for `str()` trusts them."""
    values = [fields.pop(name) for name in _UNICODE_FIELDS if name in fields]
    whole, start, end = values[-4], values[-3], values[-2]
    _require(0 <= start <= end <= len(whole) and start < max(1, len(whole)))
    constructor: Any = next(kind for kind in _UNICODE_ERRORS if isinstance(exc, kind)).__init__
    constructor(exc, *values)
    _restore_fields(exc, fields)


def _restore_fields(exc: BaseException, fields: dict[str, Any]) -> None:
    descriptors = {
        name: field
        for kind in reversed(type(exc).__mro__)
        for name, field in vars(kind).items()
        if isinstance(field, MemberDescriptorType) and name not in _FIELDS_LEFT_OUT
    }
    for name, value in fields.items():
        descriptors[name].__set__(exc, value)


def _require(condition: object) -> None:
    if condition is not True:
        raise _UnreadableError


def _name(data: object) -> str:
    name = _value(data, (), 0)
    if not isinstance(name, str):
        raise _UnreadableError
    return sys.intern(name)


def _value(data: Any, args: tuple[Any, ...], depth: int) -> Any:
    """Return the value that `_safe` encoded."""
    match data:
        case None | bool() | int() | float() | str() | bytes():
            return data
        case ["u", bytes() as text]:
            return text.decode("utf-8", "surrogatepass")
        case ["i", str() as digits]:
            return int(digits, 16)
        case ["y", bytes() as content]:
            return bytearray(content)
        case ["r", text, shown]:
            return Opaque.of(_value(text, (), 0), _value(shown, (), 0))
        case ["a", int() as index]:
            return args[index]
        case [("t" | "l" | "s" | "f") as tag, list() as items] if depth:
            return _CONTAINERS[tag]([_value(item, args, depth - 1) for item in items])
        case ["d", list() as pairs] if depth:
            return {_value(key, args, depth - 1): _value(item, args, depth - 1) for key, item in pairs}
    raise _UnreadableError

"""Exceptions cross processes with type, text and attributes, or become a RemoteError; nothing hostile gets through."""

import contextlib
import io
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, Self

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.errors import NotFound, RemoteError
from p2pgrid.core.failure import (
    NODES_MAX,
    TRACEBACK_MAX,
    Opaque,
    RemoteTraceback,
    decode_exception,
    encode_exception,
)


class OutOfStockError(Exception):
    """Its __init__ takes more than its args hold."""

    def __init__(self, item: str, *, wanted: int, shelves: dict[str, int]) -> None:
        super().__init__(f"{item}: {wanted} wanted")
        self.item = item
        self.wanted = wanted
        self.shelves = shelves


class SensorError(OSError):
    """Its __init__ builds an OSError out of something else."""

    def __init__(self, sensor: Path) -> None:
        super().__init__(5, "no answer", str(sensor))
        self.sensor = sensor


class PositionError(ValueError):
    """It keeps no args at all and makes its text from attributes."""

    def __init__(self, line: int, column: int) -> None:
        super().__init__()
        self.where = (line, column)

    def __str__(self) -> str:
        return "line {}, column {}".format(*self.where)


class SlottedError(Exception):
    """Its attribute lives in a slot."""

    __slots__ = ("level", "never_set")

    def __init__(self, level: int) -> None:
        super().__init__("too high")
        self.level = level


class TrickyError(Exception):
    """Would run code if it were pickled."""

    def __reduce__(self) -> NoReturn:
        pytest.fail("pickled")


class PickyError(Exception):
    """Cannot be made from outside."""

    def __new__(cls, *args: object) -> Self:
        if args != ("secret",):
            raise TypeError(args)
        return super().__new__(cls)

    def __init__(self, word: str) -> None:
        super().__init__("changed " + word)


class MuteError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


class NastyError(Exception):
    """Everything about it fails."""

    args = property(lambda _self: 1 / 0)

    @property
    def __dict__(self) -> NoReturn:  # type: ignore[override]
        raise ZeroDivisionError

    def __str__(self) -> str:
        return "x" * 10**6

    def __getattribute__(self, name: str) -> NoReturn:
        raise ZeroDivisionError(name)


class OddGroup(ExceptionGroup[Exception]):
    """A group that is made with more than groups are made with."""

    def __new__(cls, message: str, members: list[Exception], _code: int) -> Self:
        return super().__new__(cls, message, members)

    def __init__(self, _message: str, _members: list[Exception], code: int) -> None:
        self.code = code


class Loud:
    """Neither its text nor its repr can be had."""

    def __repr__(self) -> NoReturn:
        raise ValueError("no")


def raised(act: Callable[[], object]) -> BaseException:
    """Return what `act` raises, with a traceback as in a worker."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001 - any exception is the subject here
        return error
    pytest.fail("nothing was raised")


def throw(error: BaseException) -> NoReturn:
    raise error


def travelled(error: BaseException) -> BaseException:
    """Return the exception after its way through msgpack."""
    return decode_exception(msgpack.unpackb(msgpack.packb(encode_exception(error)), strict_map_key=False))


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


LIKE_LOCAL: list[tuple[Callable[[], object], tuple[str, ...]]] = [
    (lambda: throw(OutOfStockError("bolt", wanted=3, shelves={"a": 1})), ("item", "wanted", "shelves")),
    (lambda: throw(PositionError(3, 14)), ("where",)),
    (lambda: throw(SlottedError(7)), ("level",)),
    (lambda: throw(TrickyError(1, "two")), ()),
    (lambda: json.loads('{"a": }'), ("msg", "doc", "pos", "lineno", "colno")),
    (
        lambda: subprocess.run([sys.executable, "-c", "exit(3)"], check=True, capture_output=True),
        ("returncode", "cmd", "output", "stdout", "stderr"),
    ),
    (b"caf\xe9".decode, ("encoding", "object", "start", "end", "reason")),
    (lambda: "caf\xe9".encode("ascii"), ("encoding", "object", "start", "end", "reason")),
    (lambda: throw(UnicodeTranslateError("\u1234", 0, 1, "no")), ("object", "start", "end", "reason")),
    (lambda: Path("/no/such\udcff").read_bytes(), ("errno", "strerror", "filename", "filename2")),
    (lambda: Path("/no/a").rename("/no/b"), ("errno", "strerror", "filename", "filename2")),
    (lambda: dict[str, int]()["missing"], ()),
    (lambda: dict[object, int]()[(1, None, 2.5, b"x", frozenset({3}))], ()),
    (lambda: throw(StopIteration(4)), ("value",)),
    (lambda: sys.exit(3), ("code",)),
    (lambda: __import__("no_such_module"), ("name", "path", "msg")),
    (lambda: compile("a b", "f.py", "exec"), ("msg", "filename", "lineno", "offset", "text", "end_offset")),
    (lambda: eval("no_such_name"), ("name",)),
    (lambda: (1).no_such_attribute, ("name",)),  # type: ignore[attr-defined]
    (lambda: throw(ValueError(2**80, -(2**5000), bytearray(b"x"), {"a": [1, (2,)]}, {1, 2})), ()),
    (lambda: throw(NotFound("no job")), ("message", "next", "code")),
    (lambda: 1 / 0, ()),
]


@pytest.mark.parametrize(("act", "attributes"), LIKE_LOCAL)
def test_an_exception_comes_back_as_it_was_raised(act: Callable[[], object], attributes: tuple[str, ...]) -> None:
    """Type, text, args and attributes equal the local ones."""
    local = raised(act)

    remote = travelled(local)

    assert type(remote) is type(local)
    assert str(remote) == str(local)
    assert remote.args == local.args
    assert [getattr(remote, name) for name in attributes] == [getattr(local, name) for name in attributes]
    assert local.__traceback__ is not None
    assert "Traceback (most recent call last)" in shown(remote)


def test_an_os_error_of_ones_own_keeps_the_fields_of_c() -> None:
    """A subclass that calls OSError.__init__ with other arguments; what is unsafe comes as its text."""
    remote: Any = travelled(SensorError(Path("/dev/sensor")))

    assert type(remote).__name__ == "SensorError"
    assert str(remote) == "[Errno 5] no answer: '/dev/sensor'"
    assert (remote.errno, remote.strerror, remote.filename) == (5, "no answer", "/dev/sensor")
    assert remote.sensor == "/dev/sensor"
    assert repr(remote.sensor) == "PosixPath('/dev/sensor')"


def test_unsafe_arguments_come_as_texts_that_read_the_same() -> None:
    """A stand-in prints like the object did, inside containers too."""
    local = KeyError(Decimal("1.5"), [Decimal(2)], int)

    remote = travelled(local)

    assert str(remote) == str(local)
    assert all(isinstance(argument, Opaque) for argument in (remote.args[0], remote.args[1][0], remote.args[2]))
    assert str(travelled(ValueError(Decimal("1.5")))) == "1.5"


def test_a_group_comes_back_with_its_members() -> None:
    """Recursively, with notes, and usable in `except*`."""
    inner = ExceptionGroup("inner", [KeyError("k")])
    local = raised(lambda: throw(ExceptionGroup("outer", [OutOfStockError("nut", wanted=1, shelves={}), inner])))
    local.add_note("seen at noon")

    remote = travelled(local)

    assert isinstance(remote, ExceptionGroup)
    assert str(remote) == "outer (2 sub-exceptions)"
    assert remote.message == "outer"
    assert [(type(e), str(e)) for e in remote.exceptions] == [
        (OutOfStockError, "nut: 1 wanted"),
        (ExceptionGroup, "inner (1 sub-exception)"),
    ]
    assert remote.exceptions[0].item == "nut"  # type: ignore[union-attr]
    assert remote.__notes__ == ["seen at noon"]
    assert "KeyError: 'k'" in shown(remote)


def test_a_group_with_its_own_new_comes_back() -> None:
    """The class's own __new__ wants more than it hands on, so it is not called."""
    remote = travelled(OddGroup("odd", [ValueError(1)], 7))

    assert isinstance(remote, OddGroup)
    assert (str(remote), remote.code) == ("odd (1 sub-exception)", 7)


def test_a_large_group_keeps_its_count() -> None:
    """64 members travel; the others are counted, because the text counts them."""
    remote = travelled(ExceptionGroup("many", [ValueError(i) for i in range(1000)]))

    assert isinstance(remote, ExceptionGroup)
    assert str(remote) == "many (1000 sub-exceptions)"
    assert str(remote.exceptions[63]) == "63"
    assert isinstance(remote.exceptions[64], RemoteError)


def test_the_remote_traceback_is_shown() -> None:
    """What pytest or a terminal prints shows the line that raised, elsewhere."""
    remote = travelled(raised(lambda: throw(ValueError("bad"))))

    text = shown(remote)

    assert isinstance(remote.__cause__, RemoteTraceback)
    assert "in throw\n    raise error\nValueError: bad\n" in text
    assert text.endswith("ValueError: bad\n")


def test_the_callers_own_frames_are_left_out() -> None:
    """The worker's loop is of no interest to the user."""
    local = raised(lambda: throw(ValueError("bad")))

    text = encode_exception(local, skip_frames=1)["traceback"]

    assert "in raised" not in text
    assert "in throw" in text
    assert encode_exception(local, skip_frames=99)["traceback"] == "ValueError: bad\n"


def test_a_cause_comes_back_beside_the_remote_traceback() -> None:
    """`raise … from` keeps its meaning: the cause is the cause, the carrier ends the chain."""
    local = ValueError("outer")
    local.__cause__ = OutOfStockError("nut", wanted=1, shelves={})

    remote = travelled(local)

    assert isinstance(remote.__cause__, OutOfStockError)
    assert remote.__cause__.item == "nut"
    assert isinstance(remote.__cause__.__cause__, RemoteTraceback)


def test_a_context_comes_back() -> None:
    """What was being handled when it was raised is kept."""

    def act() -> None:
        try:
            throw(KeyError("first"))
        except KeyError:
            throw(ValueError("second"))

    remote = travelled(raised(act))

    assert isinstance(remote.__context__, KeyError)
    assert "During handling of the above exception" in shown(remote)


def test_an_exception_that_travels_twice_shows_both_ways() -> None:
    """A task that waits for a task hands its failure on."""
    once = travelled(raised(lambda: throw(OutOfStockError("nut", wanted=1, shelves={}))))

    twice = travelled(raised(lambda: throw(once)))

    assert isinstance(twice, OutOfStockError)
    assert shown(twice).count("RemoteTraceback") == 2


@pytest.mark.parametrize(
    "local",
    [
        pytest.param(PickyError("secret"), id="its __new__ refuses"),
        pytest.param(MuteError("x"), id="its __str__ raises"),
        pytest.param(NastyError(), id="all of it raises"),
        pytest.param(ValueError("x" * 10**6), id="its text is too long"),
        pytest.param(type("Unknown", (Exception,), {})("gone"), id="its class is not found"),
        pytest.param(type("Local", (Exception,), {"__module__": "not.loaded"})("gone"), id="its module is not loaded"),
    ],
)
def test_what_cannot_be_rebuilt_is_a_remote_error(local: Exception) -> None:
    """It still says its class and its text, and nothing raises on the way."""
    remote = travelled(local)

    assert type(remote) is RemoteError
    assert remote.qualname == type(local).__qualname__
    assert remote.module == type(local).__module__
    assert len(str(remote)) < 70_000


def test_a_loud_argument_is_survived() -> None:
    """An argument whose repr raises does not hide the exception."""
    data = encode_exception(ValueError("x", Loud()))

    assert type(decode_exception(data)) is RemoteError
    assert data["args"][0] == "x"


@pytest.mark.parametrize(
    "local",
    [
        pytest.param(ValueError(["x" * 1000] * 10**5), id="much"),
        pytest.param(ValueError(*range(10**5)), id="many"),
        pytest.param(ExceptionGroup("g", [ExceptionGroup("h", [ValueError("x" * 60_000)] * 99)] * 99), id="group"),
    ],
)
def test_a_failure_is_bounded(local: Exception) -> None:
    """However large the exception, its message is not."""
    data = encode_exception(local)

    assert len(msgpack.packb(data)) < 3 * 2**20
    assert len(data["traceback"].encode()) <= TRACEBACK_MAX


def test_deep_chains_cycles_and_recursion_are_bounded() -> None:
    """Neither a long chain nor an endless one is followed for long."""
    chain = ValueError(0)
    for i in range(1000):
        link = ValueError(i)
        link.__cause__ = chain
        chain = link
    cycle: list[Any] = []
    cycle.extend([cycle] * 100)

    def dive() -> None:
        dive()

    assert str(travelled(chain)) == "999"
    assert isinstance(travelled(ValueError("x", cycle)), RemoteError)
    assert isinstance(travelled(raised(dive)), RecursionError)


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("builtins", "eval"),
        ("builtins", "int"),
        ("builtins", "ValueError.__init__"),
        ("no.such.module", "Boom"),
        ("subprocess", "Popen"),
        ("os", "path.join"),
        ("", ""),
        (None, 5),
        (["builtins"], "ValueError"),
    ],
)
def test_only_loaded_exception_classes_are_taken(module: object, qualname: object) -> None:
    """Whatever else is named is never called."""
    data = encode_exception(ValueError("x")) | {"module": module, "qualname": qualname}

    assert type(decode_exception(data)) is RemoteError
    assert "no.such.module" not in sys.modules


@pytest.mark.parametrize("fields", [(-5, -4), (3, 4), (0, 99), (2, 1), ("0", 1)])
def test_unicode_fields_out_of_range_are_refused(fields: tuple[object, object]) -> None:
    """CPython trusts them and would read outside of its memory."""
    start, end = fields
    data = encode_exception(UnicodeDecodeError("ascii", b"abc", 0, 1, "no"))
    data["fields"] = [["encoding", "ascii"], ["object", b"abc"], ["start", start], ["end", end], ["reason", "no"]]

    assert type(decode_exception(data)) is RemoteError


def test_a_group_that_claims_a_billion_members_is_refused() -> None:
    """A short message does not fill the memory."""
    data = encode_exception(ExceptionGroup("g", [ValueError(1)])) | {"count": 10**9}

    assert type(decode_exception(data)) is RemoteError


def test_a_message_of_endless_depth_is_cut() -> None:
    """Causes inside causes are followed to depth 8."""
    data: dict[str, Any] = encode_exception(ValueError(0))
    for _ in range(NODES_MAX * 2):
        data = data | {"cause": data}

    assert isinstance(decode_exception(data), ValueError)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
        | st.tuples(st.sampled_from(list("tlsfduiyrax")), inner).map(list)
    ),
    max_leaves=12,
)
KEYS = ("args", "text", "dict", "fields", "cause", "context", "members", "count", "message", "traceback")
SAMPLES = [
    ValueError("x"),
    OSError(2, "no", "f"),
    UnicodeDecodeError("ascii", b"abc", 0, 1, "no"),
    SyntaxError("bad", ("f.py", 1, 2, "a b", 1, 3)),
    ImportError("no", name="n", path="p"),
    ExceptionGroup("g", [ValueError(1)]),
    StopIteration(3),
]


@given(junk)
def test_any_message_gives_an_exception(data: object) -> None:
    """Random data is a RemoteError at worst, and it can be printed."""
    error = decode_exception(data)

    assert isinstance(shown(error), str)


@given(st.sampled_from(SAMPLES), st.dictionaries(st.sampled_from(KEYS), junk, max_size=3), st.data())
def test_any_damaged_message_gives_an_exception(
    local: Exception, damage: dict[str, object], draw: st.DataObject
) -> None:
    """A message that is right but for some parts is the hardest to refuse."""
    data = encode_exception(local) | damage
    names = ("errno", "filename", "lineno", "offset", "text", "object", "start", "encoding", "name", "msg")
    data["fields"] = data["fields"] if "fields" in damage else [[draw.draw(st.sampled_from(names)), draw.draw(junk)]]

    error = decode_exception(data)

    assert isinstance(shown(error), str)
    assert isinstance(str(error), str)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=20,
)


@given(st.lists(plain, max_size=4), st.dictionaries(st.text(min_size=1), plain, max_size=3))
def test_plain_values_come_back_equal(args: list[Any], attributes: dict[str, Any]) -> None:
    """Whatever is made of plain values travels without loss."""
    local = ValueError(*args)
    vars(local).update(attributes)

    remote = travelled(local)

    assert type(remote) is ValueError
    assert remote.args == tuple(args)
    assert vars(remote) == attributes


def test_it_needs_neither_msgpack_nor_anything_installed() -> None:
    """The worker child imports it in a foreign interpreter."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import p2pgrid.core.failure;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('msgpack', 'trio', 'libp2p', 'asyncio')))"
    )
    root = str(Path(__file__).parents[2])

    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_printing_goes_through_the_standard_hook() -> None:
    """What an interactive session shows is complete."""
    remote = travelled(raised(lambda: 1 // 0))
    out = io.StringIO()

    with contextlib.redirect_stderr(out):
        sys.excepthook(type(remote), remote, None)

    assert out.getvalue().count("ZeroDivisionError") == 2

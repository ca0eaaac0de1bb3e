"""Functions and values as bytes: what travels, what is refused, and how the culprit is named."""

from __future__ import annotations

import functools
import importlib
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from p2pgrid.client import pickling
from p2pgrid.client.modules import travels_by_value
from p2pgrid.client.pickling import Functions, Misplaced, TooLarge, pickled_items
from p2pgrid.core.errors import NotSerializable, QuotaExceeded
from p2pgrid.core.wire import unpack


def pickled_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle arguments among which are no futures."""
    data = pickling.pickled_call(args, kwargs)
    assert isinstance(data, bytes)
    return data


class Connection:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def method(self) -> None: ...


class Client:
    def __init__(self) -> None:
        self.name = "c"
        self.conn = Connection()


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner


def called_elsewhere(data: bytes, *args: object) -> str:
    """Load a function in a fresh interpreter that has cloudpickle and nothing of ours; return repr(fn(*args))."""
    program = "import pickle,sys\nf,a=pickle.loads(sys.stdin.buffer.read())\nprint(repr(pickle.loads(f)(*a)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], input=pickle.dumps((data, args)), capture_output=True, cwd="/",
        check=False, env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def data_of(fn: Any) -> bytes:
    return unpack(Functions().get(fn).union)[2]  # type: ignore[no-any-return]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the user's, outside site-packages, with a helper in a submodule."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "deep.py").write_text("BASE = 40\ndef base():\n    return BASE\nclass Point:\n    x = 2\n")
    (tmp_path / "mine" / "work.py").write_text(
        "from mine.deep import base, Point\nimport mine.deep\n"
        "def f(n):\n    return base() + n\n"
        "def g():\n    return mine.deep.base() + Point().x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine", "mine.deep", "mine.work"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("mine.work")
    for name in ("mine", "mine.deep", "mine.work"):
        sys.modules.pop(name, None)


def test_users_modules_travel_by_value_and_installed_ones_do_not(module: ModuleType) -> None:
    """What is neither in the standard library nor in site-packages goes along; p2pgrid itself never does."""
    assert travels_by_value("mine.work")
    assert travels_by_value("mine")
    assert not travels_by_value("json.decoder")
    assert not travels_by_value("msgpack")
    assert not travels_by_value("p2pgrid.core.wire")


def test_function_of_a_users_module_runs_where_the_module_is_not(module: ModuleType) -> None:
    """A function takes along the functions, classes and modules of the user's that it reaches."""
    assert called_elsewhere(data_of(module.f), 2) == "42"
    assert called_elsewhere(data_of(module.g)) == "42"


def test_lambda_closure_partial_and_method_run_elsewhere() -> None:
    """Whatever can be called can be sent."""
    base = 40

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, m: int) -> int:
            return self.n + m

    assert called_elsewhere(data_of(lambda n: base + n), 2) == "42"
    assert called_elsewhere(data_of(functools.partial(pow, 2)), 3) == "8"
    assert called_elsewhere(data_of(Adder(40).add), 2) == "42"
    assert called_elsewhere(data_of(math.sqrt), 4) == "2.0"


def test_cloudpickles_registry_is_as_before(module: ModuleType) -> None:
    """Pickling leaves no module registered."""
    before = cloudpickle.list_registry_pickle_by_value()
    data_of(module.f)

    assert cloudpickle.list_registry_pickle_by_value() == before


def test_function_is_pickled_once() -> None:
    """The same function object gives the same bytes without pickling again."""
    functions = Functions()

    def f() -> int:
        return 1

    assert functions.get(f) is functions.get(f)


def test_rebound_closure_global_or_default_is_seen() -> None:
    """A function whose captured names were bound anew is pickled again."""
    functions = Functions()
    value = 1

    def f(step: int = 1) -> int:
        return value + step

    first = functions.get(f)
    value = 2
    second = functions.get(f)
    f.__defaults__ = (5,)
    third = functions.get(f)

    assert len({first.id, second.id, third.id}) == 3
    assert called_elsewhere(unpack(third.union)[2]) == "7"


def test_function_cache_forgets_dead_functions() -> None:
    """A function that is gone leaves nothing behind."""
    functions = Functions()

    def make() -> None:
        functions.get(lambda: 1)

    make()

    assert not functions._by_id


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Client(), "args[0].conn.lock: TypeError: cannot pickle '_thread.lock' object"),
        ([1, {"k": Connection()}], "args[0][1]['k'].lock: TypeError"),
        (Slotted(Connection()), "args[0].inner.lock: TypeError"),
        (functools.partial(print, threading.Lock()), "args[0].args[0]: TypeError"),
        (Client().conn.method, "args[0].__self__.lock: TypeError"),
        ((i for i in [1]), "args[0]: TypeError: cannot pickle 'generator' object"),
    ],
)
def test_not_serializable_names_the_path(value: object, path: str) -> None:
    """The message leads to the attribute that cannot be pickled."""
    with pytest.raises(NotSerializable) as caught:
        pickled_call((value,), {})

    assert caught.value.message.startswith(path)


def test_not_serializable_names_keyword_closure_and_global() -> None:
    """Keyword arguments and what a function captures are named as well."""
    lock = threading.Lock()
    with pytest.raises(NotSerializable, match=r"^conn\.lock: TypeError"):
        pickled_call((), {"conn": Connection()})
    with pytest.raises(NotSerializable, match=r"\.__closure__\['lock'\]: TypeError"):
        Functions().get(lambda: lock)
    with pytest.raises(NotSerializable, match=r"^items\[12\]\.lock: TypeError"):
        pickled_items([1, Connection()], 11, 1 << 20)


def test_own_reduce_that_raises_is_told_as_it_is() -> None:
    """Whatever the user's __reduce__ raises is the reason given."""

    class Odd:
        def __reduce__(self) -> Any:
            raise KeyError("odd")

    with pytest.raises(NotSerializable, match=r"args\[0\]: KeyError: 'odd'"):
        pickled_call((Odd(),), {})


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: [f], lambda f: {"a": (1, f)}])
def test_future_of_others_in_arguments_is_refused_with_advice(wrap: Any) -> None:
    """A future of another executor, at any depth, is a TypeError that says what to do."""
    with pytest.raises(TypeError, match=r"use \.result\(\)"):
        pickled_call((wrap(Future()),), {})
    with pytest.raises(Misplaced):
        pickled_items([wrap(Future())], 0, 1 << 20)


def test_plain_arguments_take_the_plain_pickle() -> None:
    """Numbers, texts and containers of them are what `pickle` makes of them; nothing at all is b""."""
    assert pickled_call((), {}) == b""
    assert pickled_call((1, "a"), {}) == pickle.dumps(((1, "a"), {}), 5)
    assert pickled_call(([1, 147, 2.5],), {"k": (b"x", None)}) != b""
    assert pickle.loads(pickled_call(([1, 147, 2.5],), {"k": (b"x", None)})) == (([1, 147, 2.5],), {"k": (b"x", None)})


def test_class_of_a_users_module_in_an_argument_travels_too(module: ModuleType) -> None:
    """An argument whose class the worker lacks brings it along."""
    data = pickled_call(([module.Point()],), {})

    assert called_elsewhere(data_of(lambda d: __import__("pickle").loads(d)[0][0][0].x), data) == "2"


def test_too_large_a_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fits into a batch is QuotaExceeded, whichever pickler it takes."""
    monkeypatch.setattr(pickling, "VALUE_BYTES_MAX", 1000)
    with pytest.raises(QuotaExceeded, match=r"1000 B"):
        pickled_call((b"x" * 2000,), {})
    with pytest.raises(TooLarge):
        pickled_items([b"x" * 2000], 0, 1000)


def test_numpy_array_argument_arrives() -> None:
    """Arrays take the slow pickler and arrive whole."""
    np = pytest.importorskip("numpy")
    (array,), _ = pickle.loads(pickled_call((np.arange(5),), {}))

    assert array.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only", "empty"])
def test_large_numpy_array_travels_whole(layout: str) -> None:
    """Beyond 64 KiB the pickler hands over the array's buffer itself: in every layout its bytes arrive."""
    np = pytest.importorskip("numpy")
    array = np.asarray(np.arange(60_000, dtype=float).reshape(100, 20, 30), order="F" if layout == "F" else "C")
    if layout == "strided":
        array = array[::2, :, ::3]
    elif layout == "read-only":
        array.flags.writeable = False
    elif layout == "empty":
        array = array[:0]

    (arrived,), _ = pickle.loads(pickled_call((array,), {}))
    (listed,) = pickle.loads(pickled_items([array], 0, 1 << 20))

    assert np.array_equal(arrived, array)
    assert np.array_equal(listed, array)


def test_limit_counts_the_bytes_of_a_buffer_not_its_rows() -> None:
    """An array whose pickle is above the limit is TooLarge, however few rows it has."""
    np = pytest.importorskip("numpy")
    with pytest.raises(TooLarge):
        pickled_items([np.zeros((1, 100_000))], 0, 200_000)

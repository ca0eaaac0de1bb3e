"""Functions and values as bytes: what travels, what is refused, and how the culprit is named."""

from __future__ import annotations

import functools
import importlib
import math
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from p2pgrid.client import pickling
from p2pgrid.client.pickling import (
    Function,
    Functions,
    Misplaced,
    Packed,
    TooLarge,
    pickled_call,
    pickled_items,
)
from p2pgrid.core.errors import NotSerializable, QuotaExceeded
from p2pgrid.core.tree import read_tree
from p2pgrid.core.wire import unpack


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


def arguments(packed: bytes | Packed) -> Any:
    """Unpickle the arguments of a call, that need nothing."""
    assert isinstance(packed, bytes)
    return pickle.loads(packed)


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
        "def made():\n    return lambda: mine.deep.base() + Point().x\n"
        "class Adder:\n    def add(self, n):\n        return n + 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine", "mine.deep", "mine.work"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("mine.work")
    for name in ("mine", "mine.deep", "mine.work"):
        sys.modules.pop(name, None)


def files_in(function: Function) -> list[str]:
    assert function.tree is not None
    return [file.path for file in read_tree(function.tree.packed)]


def test_a_function_of_a_users_module_goes_by_its_name(module: ModuleType) -> None:
    """Bound to no Python version, with the tree it is imported from; what is installed needs no tree."""
    own, installed = Functions().get(module.f), Functions().get(math.sqrt)

    assert own.tree is not None
    assert unpack(own.union) == ["import", "mine.work:f", own.tree.id]
    assert files_in(own) == ["mine/__init__.py", "mine/deep.py", "mine/work.py"]
    assert unpack(installed.union) == ["import", "math:sqrt", None]
    assert installed.tree is None


def test_what_has_no_name_goes_by_value_with_the_tree(module: ModuleType) -> None:
    """Closures, methods and functions of this file: bound to this Python, and to the tree where they need one."""
    closure, method = Functions().get(module.made()), Functions().get(module.Adder().add)
    plain = Functions().get(lambda: 1)

    assert unpack(closure.union)[:2] == unpack(method.union)[:2] == ["pickle", sys.version_info.minor]
    assert closure.tree is not None
    assert method.tree is not None
    assert closure.tree.id == method.tree.id
    assert unpack(closure.union)[3] == closure.tree.id
    assert (plain.tree, len(unpack(plain.union))) == (None, 3)


def test_an_import_inside_of_a_function_is_seen(module: ModuleType) -> None:
    """Whether at first hand or in a function that it calls, and with a wide table of names."""

    def inner() -> Any:
        import mine.deep  # type: ignore[import-not-found]  # noqa: PLC0415 - on purpose

        return mine.deep.base()

    names = "\n".join(f"    x{i} = len([y{i}])" for i in range(300))
    space: dict[str, Any] = {"__name__": "__main__", **{f"y{i}": i for i in range(300)}}
    exec(f"def wide():\n{names}\n    from mine import work\n    return work", space)

    assert "mine/deep.py" in files_in(Functions().get(lambda: [inner()]))
    assert "mine/work.py" in files_in(Functions().get(space["wide"]))


def test_an_edited_file_gives_another_function(module: ModuleType, tmp_path: Path) -> None:
    """The next map has the new code; a file that was only touched changes nothing."""
    functions = Functions()
    first = functions.get(module.f)
    deep = tmp_path / "mine" / "deep.py"
    os.utime(deep, (1, 1))
    touched = functions.get(module.f, look=True)
    deep.write_text(deep.read_text().replace("40", "50"))
    second = functions.get(module.f, look=True)
    (tmp_path / "mine" / "data.txt").write_text("1")
    third = functions.get(module.f, look=True)

    assert touched.id == first.id
    assert len({first.id, second.id, third.id}) == 3
    assert files_in(third)[:2] == ["mine/__init__.py", "mine/data.txt"]


def test_arguments_bring_what_they_need(module: ModuleType) -> None:
    """A class of the user's in an argument adds its module to the function's tree; a lambda binds it to this Python."""
    functions = Functions()
    packed = pickled_call((module.Adder(), 1), {})
    assert isinstance(packed, Packed)
    wider = functions.get(len, packed.needs)
    bound = pickled_call((lambda: 1,), {})
    assert isinstance(bound, Packed)

    assert "mine/work.py" in files_in(wider)
    assert unpack(wider.union)[:2] == ["import", "builtins:len"]
    assert functions.get(module.f).serves(packed.needs)
    assert functions.get(module.f, packed.needs) is functions.get(module.f)
    assert unpack(functions.get(module.f, bound.needs).union)[:2] == ["pickle", sys.version_info.minor]


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
    assert arguments(pickled_call(([1, 147, 2.5],), {"k": (b"x", None)})) == (([1, 147, 2.5],), {"k": (b"x", None)})


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
    (array,), _ = arguments(pickled_call((np.arange(5),), {}))

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

    (arrived,), _ = arguments(pickled_call((array,), {}))
    (listed,) = pickle.loads(pickled_items([array], 0, 1 << 20).data)

    assert np.array_equal(arrived, array)
    assert np.array_equal(listed, array)


def test_limit_counts_the_bytes_of_a_buffer_not_its_rows() -> None:
    """An array whose pickle is above the limit is TooLarge, however few rows it has."""
    np = pytest.importorskip("numpy")
    with pytest.raises(TooLarge):
        pickled_items([np.zeros((1, 100_000))], 0, 200_000)

"""Which modules and files go along with a function, and what is refused before anything is sent."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pgrid.client import gathering, modules
from p2pgrid.client.trees import Tree, tree_of
from p2pgrid.core import tree as core_tree
from p2pgrid.core.errors import GridError, NotSerializable, PeerError, QuotaExceeded
from p2pgrid.core.tree import read_tree

Write = Callable[..., None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, in which packages of the test's may be made."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(modules, "_known", {})
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    """Write files: `__` in a name stands for `/`, `_DOT_` for a dot; without one it is a module."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/").replace("_DOT_", ".") if "_DOT_" in name else name.replace("__", "/"))
        path = path if "_DOT_" in name else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def package(folder: Path, name: str = "pkg", **files: str) -> Path:
    inside = folder / name
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("")
    write(inside, **files)
    return inside


def paths(*names: str) -> list[str]:
    importlib.invalidate_caches()
    tree = tree_of(names)
    assert isinstance(tree, Tree)
    return [file.path for file in read_tree(tree.packed)]


def test_imports_are_followed_without_running_anything(project: Path) -> None:
    """Absolute, relative, dotted, inside functions; not those for type checkers, not what is installed."""
    package(
        project, a="import json, click\nfrom . import b\nfrom .sub.deep import x\nraise SystemExit",
        b="def f():\n    import helper\n    from ..pkg import c\n", c="",
    )  # fmt: skip
    package(project / "pkg", "sub", deep="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import other\nx = 1")
    package(project / "pkg", "unused", z="")
    write(project, helper="", other="", stranger="")

    assert paths("pkg.a") == [
        "helper.py", "pkg/__init__.py", "pkg/a.py", "pkg/b.py", "pkg/c.py", "pkg/sub/__init__.py", "pkg/sub/deep.py",
    ]  # fmt: skip


def test_modules_that_import_each_other_in_circles_end(project: Path) -> None:
    """Each is looked at once."""
    write(project, ring_a="import ring_b", ring_b="import ring_a")

    assert paths("ring_a") == ["ring_a.py", "ring_b.py"]


def test_what_a_package_imports_by_made_up_names_comes_once_it_is_imported(project: Path) -> None:
    """A plugin that the program has loaded is looked through for what it imports."""
    inside = package(project, plugin="import helper2\n")
    (inside / "__init__.py").write_text("import importlib\nimportlib.import_module('pkg.plug' + 'in')\n")
    write(project, helper2="")
    importlib.import_module("pkg")

    assert "helper2.py" in paths("pkg")


def test_data_files_go_and_what_is_ignored_stays(project: Path) -> None:
    """Rules of every level count, the deeper ones last; a module that is imported goes whatever they say."""
    (project / ".git").mkdir()
    (project / ".gitignore").write_text("*.log\n/pkg/build/\n_version.py\n")
    inside = package(project, a="from . import _version", _version="v = 1", run_DOT_log="", data__rates_DOT_csv="1,2")
    write(inside, data__keep_DOT_log="", build__x_DOT_o="", data__b_DOT_tmp="")
    (inside / "data" / ".gitignore").write_text("!keep.log\n*.tmp\n")
    (inside / ".env").write_text("SECRET=1")
    (inside / "__pycache__").mkdir()
    (inside / "__pycache__" / "a.cpython-311.pyc").write_text("")
    (inside / "env").mkdir()
    (inside / "env" / "pyvenv.cfg").write_text("")

    assert paths("pkg.a") == [
        "pkg/__init__.py", "pkg/_version.py", "pkg/a.py", "pkg/data/keep.log", "pkg/data/rates.csv",
    ]  # fmt: skip


def test_rules_outside_of_the_repository_do_not_count(project: Path) -> None:
    """Git does not look there either."""
    (project.parent / ".gitignore").write_text("*\n")
    (project / ".git").mkdir()
    package(project, a="", data_DOT_txt="")

    assert "pkg/data.txt" in paths("pkg.a")


def test_a_package_without_init_goes_too(project: Path) -> None:
    """As Python has it since 3.3."""
    write(project, space__deep__m="", space__data_DOT_txt="")

    assert paths("space.deep.m") == ["space/data.txt", "space/deep/m.py"]


def test_never_a_whole_home_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is the home folder, or above it, only its imported modules go."""
    monkeypatch.setenv("HOME", str(project / "people" / "me"))
    write(project, people__me__work="", people__me__diary_DOT_txt="", people__other_DOT_txt="")

    assert paths("people.me.work") == ["people/me/work.py"]


@pytest.mark.usefixtures("project")
def test_an_editable_install_is_the_programs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finder that leads out of site-packages (PEP 660) leads to the program's own files."""
    elsewhere = package(tmp_path / "src", "editable", a="")

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
            if name != "editable":
                return None
            return importlib.util.spec_from_file_location(
                name, elsewhere / "__init__.py", submodule_search_locations=[str(elsewhere)]
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])

    assert paths("editable.a") == ["editable/__init__.py", "editable/a.py"]


def test_what_is_installed_or_in_the_standard_library_stays() -> None:
    """Nor does p2pgrid itself travel, however it is installed."""
    assert tree_of({"json.decoder", "msgpack", "click", "p2pgrid.core.wire", "sys", "no_such_module_at_all"}) is None


def test_too_much_is_refused_with_what_is_largest(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the way out."""
    monkeypatch.setattr(gathering, "TREE_BYTES_MAX", 10_000)
    package(project, a="", small_DOT_bin="x" * 3000, big_DOT_bin="x" * 9000)
    with pytest.raises(QuotaExceeded, match=r"big\.bin .*; next: name what tasks do not need in \.gitignore") as caught:
        tree_of({"pkg.a"})

    assert "\n" not in str(caught.value)
    assert "pkg" in str(caught.value)


def test_links_inside_are_followed_and_those_that_leave_are_refused(project: Path) -> None:
    """To a file, to a folder, in a circle; one that leads nowhere is left out."""
    inside = package(project, a="", data__x_DOT_txt="1")
    (inside / "y.txt").symlink_to("data/x.txt")
    (inside / "again").symlink_to("data")
    (inside / "data" / "up").symlink_to("..")
    (inside / "gone").symlink_to("nothing")

    assert paths("pkg.a") == [
        "pkg/__init__.py", "pkg/a.py", "pkg/again/x.txt", "pkg/data/x.txt", "pkg/y.txt",
    ]  # fmt: skip

    (inside / "out").symlink_to(project.parent)
    with pytest.raises(NotSerializable, match=r"pkg/out is a link that leaves its package.*; next: "):
        tree_of({"pkg.a"})
    (project / ".git").mkdir()
    (project / ".gitignore").write_text("out\n")
    assert "pkg/a.py" in paths("pkg.a")


def test_a_file_that_changes_while_it_is_packed_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some tries; nothing half-written is ever sent."""
    growing = package(project, a="", log_DOT_txt="1") / "log.txt"
    really = os.fstat
    ticks = iter(range(100))

    def fstat(fd: int) -> os.stat_result:
        with growing.open("a") as file:
            file.write("1")
        os.utime(growing, (next(ticks), 1))
        return really(fd)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(NotSerializable, match=r"log\.txt changes while it is packed.*; next: "):
        tree_of({"pkg.a"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(project: Path) -> None:
    """Before anything is sent."""
    (package(project, a="", secret_DOT_txt="") / "secret.txt").chmod(0)
    with pytest.raises(NotSerializable, match=r"secret\.txt"):
        tree_of({"pkg.a"})


def test_a_pipe_in_a_package_holds_nobody_up(project: Path) -> None:
    """Only files are read."""
    os.mkfifo(package(project, a="") / "pipe")

    assert paths("pkg.a") == ["pkg/__init__.py", "pkg/a.py"]


def test_equal_files_are_one_tree(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The id says what is in it; what goes along is listed once."""
    inside = package(project, a="# equal")
    first = tree_of({"pkg.a"})
    os.utime(inside / "a.py", (1, 1))
    second = tree_of({"pkg.a"})
    assert first is not None
    assert second is not None

    assert first.id == second.id
    assert capsys.readouterr().err.count("sending 2 files of pkg (7 B) with the job") == 1


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", "", ".", "a\0b", "a\\b", "a/./b"])
def test_a_tree_that_would_write_elsewhere_is_refused(path: str) -> None:
    """Whoever reads one looks at every path."""
    packed = core_tree.pack_tree([core_tree.File(path, executable=False, data=b"")])
    with pytest.raises(PeerError):
        read_tree(packed)


def test_errors_are_grid_errors() -> None:
    """So that one `except` catches them."""
    assert issubclass(NotSerializable, GridError)
    assert issubclass(QuotaExceeded, GridError)

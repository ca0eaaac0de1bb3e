"""What a node is told: flags, environment, machine; and where its files and its socket are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from p2pgrid.core import locate
from p2pgrid.core.errors import GridError
from p2pgrid.node import config as configs
from p2pgrid.node.config import NodeConfig, from_flags, prepare_dir, prepare_runtime_dir, runtime_dir


def test_flags_are_read(tmp_path: Path) -> None:
    """Texts as typed become values with units."""
    config = from_flags(
        {
            "dir": str(tmp_path), "name": "otter", "slots": "3", "python": [sys.executable], "grace": "500ms",
            "resource": ["gpu=1", "disk=2GB"], "tag": ["lab", "fast"], "quota": "1GiB", "no_work": True,
        },
        {},
    )  # fmt: skip

    assert (config.dir, config.name, config.slots, config.grace_s) == (tmp_path, "otter", 3, 0.5)
    assert (config.resources, config.tags) == ({"gpu": 1.0, "disk": 2e9}, ("lab", "fast"))
    assert (config.quota, config.work, config.keep) == (1024**3, False, True)


def test_the_environment_fills_what_no_flag_says() -> None:
    """`P2PGRID_NODE_<FLAG>`, below the flags."""
    environ = {"P2PGRID_NODE_SLOTS": "5", "P2PGRID_NODE_NAME": "heron", "P2PGRID_NODE_TAG": "a,b"}
    config = from_flags({"name": "wren"}, environ)

    assert (config.slots, config.name, config.tags) == (5, "wren", ("a", "b"))


def test_how_work_is_shared_can_be_told() -> None:
    """Second copies are a flag; how much is asked for and granted at once is said in the environment."""
    plain = from_flags({}, {})
    told = from_flags({"no_speculate": True}, {"P2PGRID_NODE_QUEUE": "500ms", "P2PGRID_NODE_GUIDED": "0.5"})

    assert (plain.speculate, plain.queue_s, plain.guided) == (True, None, None)
    assert (told.speculate, told.queue_s, told.guided) == (False, 0.5, 0.5)
    assert not from_flags({}, {"P2PGRID_NODE_NO_SPECULATE": "1"}).speculate


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"guided": "0"}, "from 0.1 to"),
        ({"guided": "nan"}, "from 0.1 to"),
        ({"queue": "soon"}, "not a duration"),
        ({"slots": "many"}, "--slots"),
        ({"slots": 0}, "from 1 to"),
        ({"grace": "soon"}, "not a duration"),
        ({"resource": ["gpu"]}, "K=V"),
        ({"python": ["/no/such/python"]}, "no interpreter"),
        ({"name": "a b"}, "not a name"),
        ({"preset": "moon"}, "one of local"),
        ({"worker_user": "nobody"}, "not yet"),
        ({"colour": "red"}, "no flag 'colour'"),
    ],
)
def test_a_wrong_value_names_the_flag(flags: dict[str, object], expected: str) -> None:
    """Exit code 2 and what would be accepted."""
    with pytest.raises(GridError) as caught:
        from_flags(flags, {})

    assert caught.value.code == "usage"
    assert expected in caught.value.message


def test_the_default_interpreter_is_that_of_the_active_environment(tmp_path: Path) -> None:
    """`$VIRTUAL_ENV`, if it has one, else our own."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()

    assert from_flags({}, {"VIRTUAL_ENV": str(tmp_path)}).python == (python,)
    assert from_flags({}, {"VIRTUAL_ENV": str(tmp_path / "gone")}).python == (Path(sys.executable),)


@pytest.mark.parametrize(("cpus", "ram", "expected"), [(8, 32 * 10**9, 8), (8, 550 * 10**6, 3), (4, 100 * 10**6, 1)])
def test_default_slots_fit_cpus_and_memory(monkeypatch: pytest.MonkeyPatch, cpus: int, ram: int, expected: int) -> None:
    """min(cpus, (RAM − 200 MB) / 100 MB), at least one."""
    monkeypatch.setattr(configs, "cpus_here", lambda: cpus)
    monkeypatch.setattr(configs, "ram_here", lambda: ram)

    assert from_flags({}, {}).slots == expected


def test_no_more_cpus_than_this_process_may_use() -> None:
    """Affinity counts."""
    assert 1 <= configs.cpus_here() <= len(os.sched_getaffinity(0))


def test_facts_have_what_tasks_ask_for(tmp_path: Path) -> None:
    """Resources with cpu and mem, and the facts of `where=`."""
    facts = NodeConfig(tmp_path, slots=4, cpus=8, ram=100, resources={"gpu": 1}, tags=("lab",)).facts((3, 12, 1))

    assert facts["resources"] == {"cpu": 4, "mem": 100, "gpu": 1}
    assert (facts["python"], facts["minor"], facts["tags"], facts["os"]) == ("3.12.1", 12, ["lab"], "linux")


def test_the_socket_path_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the directory is, the path fits into `sun_path`; equal directories have equal sockets."""
    long = tmp_path / ("x" * 200)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    assert len(os.fsencode(NodeConfig(long).socket)) <= configs.SOCKET_PATH_MAX
    assert NodeConfig(long).socket == NodeConfig(tmp_path / "." / long.name).socket


def test_a_runtime_folder_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then sockets are under /tmp."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))

    assert runtime_dir() == Path(f"/tmp/p2pgrid-{os.geteuid()}")


def test_a_runtime_folder_gets_its_mode(tmp_path: Path) -> None:
    """0700, also if it was wider."""
    folder = tmp_path / "p2pgrid"
    folder.mkdir(mode=0o755)
    prepare_runtime_dir(folder)

    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """In /tmp anybody may have been there first, with a link too."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(GridError, match="somebody else"):
        prepare_runtime_dir(tmp_path / "link")


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    """One line with the next step."""
    (tmp_path / "file").touch()
    with pytest.raises(GridError) as caught:
        prepare_dir(NodeConfig(tmp_path / "file" / "dir"))

    assert caught.value.code == "directory-unusable"


def test_where_a_node_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$P2PGRID_DIR`, the user's folder, the machine's, in this order."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("P2PGRID_DIR", str(tmp_path / "own"))
    user = tmp_path / "data" / "p2pgrid"

    assert locate.default_dirs() == [tmp_path / "own", user, Path("/run/p2pgrid")]
    assert locate.data_dir() == tmp_path / "own"
    monkeypatch.delenv("P2PGRID_DIR")
    assert locate.default_dirs() == [user, Path("/run/p2pgrid")]
    assert locate.data_dir() == user


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"socket": 7}', '{"socket": "/no/such/socket"}'])
def test_a_node_file_that_leads_nowhere_is_no_node(tmp_path: Path, text: str) -> None:
    """Whatever lies there, the answer is None."""
    (tmp_path / locate.NODE_FILE).write_text(text)

    assert locate.socket_of(tmp_path) is None


def test_the_socket_of_a_directory_is_found(tmp_path: Path) -> None:
    """The path stands in the node's file."""
    (tmp_path / "socket").touch()
    (tmp_path / locate.NODE_FILE).write_text(json.dumps({"socket": str(tmp_path / "socket")}))

    assert locate.socket_of(tmp_path) == tmp_path / "socket"

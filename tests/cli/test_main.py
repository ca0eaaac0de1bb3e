"""Words in, exit code and one line out, before any node is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from p2pgrid import __version__
from p2pgrid.cli.main import LATER, VERBS
from p2pgrid.cli.node import LATER_FLAGS
from p2pgrid.core.errors import GridError, NodeGone
from p2pgrid.node.config import NodeConfig
from tests.cli.conftest import Run
from tests.cli.oracle import Oracle
from tests.core.test_errors import TREE


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_the_common_flags(run: Run, verb: str) -> None:
    """`--help` of each verb."""
    ran = run(verb, "--help")

    assert ran.code == 0
    assert ran.err == ""
    example = ran.out.partition("Example:\n")[2]
    assert "p2pgrid" in example
    assert "--json" in ran.out
    assert "--dir" in ran.out


def test_help_lists_what_works_today(run: Run) -> None:
    """Verbs of today are listed, reserved ones are not."""
    words = run("--help").out.split()

    assert set(VERBS) <= set(words)
    assert not {"dashboard", "trace"} & set(words)


def test_no_sentence_of_the_help_is_cut(run: Run) -> None:
    """What a verb does fits, if need be in two lines."""
    for words in ([], ["grid"], ["service"], ["sim"]):
        listed = run(*words, "--help").out.partition("Commands:\n")[2]
        assert listed
        assert "..." not in listed


def test_an_invite_that_is_none_makes_no_directory(run: Run, home: Path) -> None:
    """A node that cannot start for it leaves nothing behind."""
    (home / "garbage").write_text("garbage\n")

    ran = run("node", "--dir", "d", "--join", "@garbage")

    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "not an invite; next: " in ran.err
    assert not (home / "d").exists()


def test_nothing_typed_shows_help_and_is_wrong(run: Run) -> None:
    """Help on stderr: nothing was asked for."""
    ran = run()

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: p2pgrid")


@pytest.mark.parametrize("kind", TREE)
def test_what_an_error_advises_can_be_typed_today(kind: type[GridError]) -> None:
    """No error sends anyone to a verb that is not there yet."""
    advised = re.findall(r"p2pgrid ([a-z]+)", f"{kind.advice} {NodeGone('calm-river-42')}")

    assert set(advised) <= set(VERBS)


@pytest.mark.parametrize("verb", LATER)
def test_a_reserved_verb_says_that_it_comes_later(run: Run, verb: str) -> None:
    """In one line, with what to do next."""
    ran = run(verb, "whatever", "--flag")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"p2pgrid: {verb} comes later")
    assert "; next: p2pgrid --help" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("flag", LATER_FLAGS)
def test_a_flag_whose_feature_is_not_built_says_so(run: Run, flag: str) -> None:
    """Flags of `node` that INTERFACE promises."""
    ran = run("node", flag, "x")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"p2pgrid: {flag} comes later")


def test_an_invite_in_the_environment_is_not_passed_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """$P2PGRID_JOIN is read, told what is wrong with it, and gone for whatever the node would start."""
    monkeypatch.setenv("P2PGRID_JOIN", "string")

    ran = run("node")

    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("p2pgrid: this is not an invite; next: ")
    assert "P2PGRID_JOIN" not in os.environ


def test_an_invite_that_is_typed_is_seen_by_all(run: Run, home: Path) -> None:
    """The warning names the ways that keep it to oneself; those warn of nothing."""
    (home / "invite").write_text("string")
    typed = run("node", "--join", "string")
    quiet = run("node", "--join", f"@{home / 'invite'}")

    assert (typed.code, quiet.code) == (2, 2)
    assert "--join - or --join @FILE" in typed.err.splitlines()[0]
    assert quiet.err.startswith("p2pgrid: this is not an invite; next: ")


def test_flags_of_node_make_its_config(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From words and from the environment; what is typed is stronger."""
    served: list[NodeConfig] = []
    monkeypatch.setattr("p2pgrid.node.daemon.serve", served.append)
    monkeypatch.setenv("P2PGRID_NODE_SLOTS", "3")
    monkeypatch.setenv("P2PGRID_NODE_TAG", "room=1,fast")
    monkeypatch.setenv("P2PGRID_NODE_GRACE", "9s")
    words = ["--dir", "d", "--name", "fox", "--resource", "gpu=1", "--resource", "disk=1GB", "--quota", "2GiB"]

    ran = run("--json", "node", *words, "--grace", "5s", "--no-keep", "--ephemeral", "--preset", "wan")

    (config,) = served
    assert ran.code == 0
    assert (config.dir, config.name, config.slots, config.tags) == (Path("d"), "fox", 3, ("room=1", "fast"))
    assert (config.resources, config.quota) == ({"gpu": 1.0, "disk": 1e9}, 2 << 30)
    assert (config.grace_s, config.keep, config.work, config.ephemeral) == (5.0, False, True, True)
    assert (config.preset, config.json, config.embedded) == ("wan", True, False)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["job"], "jobs"),
        (["stats"], "status"),
        (["nodes"], "members"),
        (["token"], "invite"),
        (["kick", "fox"], "revoke"),
        (["jobs", "--jsn"], "--json"),
        (["node", "--slot", "2"], "--slots"),
        (["grid", "exprt", "f"], "export"),
        (["grid", "show", "--jsn"], "--json"),
    ],
)
def test_the_nearest_word_is_named(run: Run, words: list[str], meant: str) -> None:
    """Unknown verbs and flags."""
    ran = run(*words)

    assert ran.code == 2
    assert f"did you mean {meant}?; next: p2pgrid" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show"], "Missing argument"),
        (["completion", "tcsh"], "tcsh"),
        (["status", "--wait", "0"], "--wait"),
        (["demo", "--size", "12"], "is not WxH"),
        (["demo", "--size", "99x99999"], "pixels a side"),
        (["node", "--slots", "0"], "--slots"),
        (["node", "--grace", "soon"], "--grace"),
        (["node", "--resource", "gpu"], "--resource"),
        (["node", "--preset", "moon"], "--preset"),
        (["grid"], "Missing command"),
        (["invite", "--roles", "king"], "not roles"),
        (["invite", "--expires", "soon"], "not a duration"),
        (["invite", "--expires", "0"], "at least a second"),
        (["invite", "--member-until", "1999-12-31"], "is over"),
        (["invite", "--member-until", "never"], "neither a date nor a duration"),
        (["invite", "--member-until", "0s"], "is over"),
        (["promote"], "Missing argument"),
        (["promote", "fox", "--roles", ""], "not roles"),
        (["join"], "no invite was given"),
        (["join", "@nowhere"], "cannot be read"),
        (["join", __file__], "is a file, not an invite; next: p2pgrid join @"),
        (["grid", "recover", "nowhere"], "cannot be read"),
    ],
)
def test_wrong_values_are_told_in_one_line(run: Run, words: list[str], said: str) -> None:
    """Usage errors."""
    ran = run(*words)

    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "; next: p2pgrid" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["show", "export", "recover"])
def test_verbs_of_grid_have_help_too(run: Run, verb: str) -> None:
    """With an example and the common flags."""
    ran = run("grid", verb, "--help")

    assert ran.code == 0
    assert f"p2pgrid grid {verb}" in ran.out.partition("Example:\n")[2]
    assert "--json" in ran.out
    assert "--dir" in ran.out


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "jobs"],
        ["jobs", "--json"],
        ["grid", "show", "--json"],
        ["grid", "--json", "show"],
        ["--json", "grid", "show"],
    ],
)
def test_errors_are_json_when_asked_before_or_after_the_verb(run: Run, words: list[str]) -> None:
    """On stderr; stdout stays empty."""
    ran = run(*words)

    error = json.loads(ran.err)
    assert (ran.code, ran.out, error["v"], error["error"]["code"]) == (3, "", 1, "no-node")
    assert set(error["error"]) == {"code", "message", "next", "more"}


def test_json_may_be_asked_for_in_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """$P2PGRID_JOBS_JSON; verbs of two words have both in it."""
    monkeypatch.setenv("P2PGRID_JOBS_JSON", "1")
    monkeypatch.setenv("P2PGRID_GRID_SHOW_JSON", "1")

    for words in (["jobs"], ["grid", "show"]):
        assert json.loads(run(*words).err)["error"]["code"] == "no-node"


def test_no_node_is_told_with_where_we_looked_and_what_to_type(run: Run, home: Path) -> None:
    """Exit 3."""
    ran = run("jobs")

    assert (ran.code, ran.out) == (3, "")
    assert f"no node runs here (looked in {home / 'data' / 'p2pgrid'}, " in ran.err
    assert ran.err.endswith("; next: p2pgrid node; more: docs/troubleshooting.md#no-node\n")


def test_a_directory_is_the_only_place_looked_at(run: Run, home: Path) -> None:
    """With --dir, the command to type has it too."""
    ran = run("jobs", "--dir", "x")

    assert ran.err.startswith("p2pgrid: no node runs in x; next: p2pgrid node --dir x; more: ")


@pytest.mark.parametrize(
    "words", [["--dir", "D", "grid", "show"], ["grid", "--dir", "D", "show"], ["grid", "show", "--dir", "D"]]
)
def test_the_directory_may_stand_between_two_words(run: Run, oracle: Oracle, words: list[str]) -> None:
    """Wherever it stands."""
    oracle.answers["grid"] = {}

    assert run(*(str(oracle.dir) if word == "D" else word for word in words)).code == 0


@pytest.mark.parametrize("before", [True, False])
def test_the_directory_may_stand_before_or_after_the_verb(
    run: Run, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    """And is stronger than the environment."""
    oracle.answers["jobs"] = {"jobs": []}
    monkeypatch.setenv("P2PGRID_DIR", "nowhere")
    monkeypatch.setenv("P2PGRID_JOBS_DIR", "nowhere either")
    flag = ["--dir", str(oracle.dir)]

    ran = run(*flag, "jobs") if before else run("jobs", *flag)

    assert ran.code == 0


def test_version(run: Run) -> None:
    """Plain and JSON, in either order."""
    assert run("--version").out == f"p2pgrid {__version__}\n"
    for words in (["--version", "--json"], ["--json", "--version"]):
        assert json.loads(run(*words).out) == {"v": 1, "version": __version__}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    """For each shell."""
    ran = run("completion", shell)

    assert ran.code == 0
    assert "_P2PGRID_COMPLETE" in ran.out


def test_completion_completes_verbs() -> None:
    """What the script asks for."""
    asked = {**os.environ, "_P2PGRID_COMPLETE": "bash_complete", "COMP_WORDS": "p2pgrid st", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "p2pgrid"], env=asked, capture_output=True, text=True, timeout=240, check=False
    )

    assert done.stdout.split() == ["plain,status", "plain,stop"]


def test_completion_completes_second_words() -> None:
    """`p2pgrid grid <tab>`."""
    asked = {**os.environ, "_P2PGRID_COMPLETE": "bash_complete", "COMP_WORDS": "p2pgrid grid ", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "p2pgrid"], env=asked, capture_output=True, text=True, timeout=240, check=False
    )

    assert done.stderr == ""
    assert done.stdout.split() == ["plain,export", "plain,recover", "plain,show"]


def test_ctrl_c_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was going on."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pgrid.cli.jobs.open_link", interrupted)
    monkeypatch.setattr("p2pgrid.cli.result.open_link", interrupted)

    assert run("jobs").code == 130
    assert "next: the job goes on" in run("wait", "last").err


def test_an_only_node_that_drains_keeps_its_jobs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nobody to hand them to, so it is not said to be drained."""
    state = {"name": "owl", "draining": True, "drained": True, "alone": True, "running": 0, "serves": 1}

    class Alone:
        def ask(self, *_: object, **__: object) -> dict[str, object]:
            return state

    monkeypatch.setattr("p2pgrid.cli.drain.open_link", lambda *_: nullcontext(Alone()))

    assert "the only one here, and keeps 1 job;" in run("drain").err
    state["serves"] = 0
    assert "node owl is drained" in run("drain").err


def test_a_bug_of_ours_is_70_with_a_report(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback on the screen; it is in a file."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("p2pgrid.cli.jobs.open_link", broken)
    monkeypatch.setattr("tempfile.tempdir", str(home))

    ran = run("jobs")

    (report,) = home.glob("p2pgrid-bug-*.txt")
    assert ran.code == 70
    assert str(report) in ran.err
    assert ran.err.count("\n") == 1
    assert "ZeroDivisionError: oops" in report.read_text(encoding="utf-8")


def test_asking_is_light() -> None:
    """A verb that asks the node imports neither numpy nor rich nor trio nor libp2p, and `--help` neither."""
    program = (
        "import sys; from p2pgrid.cli.main import main; main(['jobs', '--dir', 'nowhere']);"
        "main(['members', '--dir', 'nowhere']); main(['--help']);"
        "print([one for one in ('numpy', 'rich', 'trio', 'libp2p', 'asyncio') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)

    assert done.stdout.splitlines()[-1] == "[]"

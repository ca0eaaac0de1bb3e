"""The files of examples/deploy, as far as that can be seen without the programs that they are for.

That they build and start was tried by hand: their steps in a fresh environment, their commands as processes.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli.main import VERBS, grid
from p2pgrid.node.addresses import PORT
from p2pgrid.node.config import from_flags

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "examples/deploy"
INSTRUCTIONS = {
    "FROM", "RUN", "CMD", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR", "HEALTHCHECK",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Return what the Dockerfile says, line by line, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def of(word: str) -> list[str]:
    return [rest for one, rest in instructions() if one == word]


def composed() -> dict[str, Any]:
    told: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return told


def test_the_dockerfile_says_what_can_be_said() -> None:
    """Known words; two stages of one Python that we run on; what is copied from the checkout is there."""
    assert {word for word, _ in instructions()} <= INSTRUCTIONS
    build, final = of("FROM")
    assert build == f"{final} AS build"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", final)
    assert version is not None
    assert f">={'3.11'}" in wanted
    assert (3, 11) <= tuple(map(int, version[1].split("."))) <= (3, 13)
    for words in of("COPY"):
        *sources, _ = [word for word in words.split() if not word.startswith("--")]
        assert all(source.startswith("/") or (ROOT / source).exists() for source in sources), words


def test_the_image_installs_what_is_locked() -> None:
    """The very commands of the README, by other names of the files' owner: every dependency by its hash."""
    readme = re.search(r"^pip install .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert readme is not None
    ours = " ".join(of("RUN")).replace("--no-cache-dir ", "")
    steps = [step.removeprefix("pip install ") for step in readme[0].split(" && ")]

    assert len(steps) == 3
    assert all(f"/opt/p2pgrid/bin/pip install {step}" in ours for step in steps)


def test_the_image_runs_a_node_that_is_not_root() -> None:
    """As process 1, without a shell; on a volume, at the port of all nodes; its health is asked of itself."""
    words = [word for word, _ in instructions()]
    final = instructions()[len(words) - words[::-1].index("FROM") :]
    said = dict(final)

    assert said["USER"] == "grid"
    entry, command = json.loads(said["ENTRYPOINT"]), json.loads(said["CMD"])
    assert entry == ["p2pgrid"]
    assert command[0] in VERBS
    assert said["EXPOSE"] == str(PORT)
    assert f"P2PGRID_DIR={said['VOLUME']}" in said["ENV"].split()
    verb = json.loads(said["HEALTHCHECK"].partition("CMD ")[2])[1]
    assert verb in VERBS


def test_every_service_of_the_compose_file_can_start() -> None:
    """Commands are verbs with flags that are there, volumes and services that are named exist."""
    told = composed()
    services = told["services"]

    assert set(services) == {"otter", "heron", "fox", "invite"}
    for name, service in services.items():
        for mounted in service["volumes"]:
            assert mounted.partition(":")[0] in told["volumes"], (name, mounted)
        for needed in service.get("depends_on", {}):
            assert needed in services, (name, needed)
        if name != "invite":
            check_node(name, service)
    context = DEPLOY / services["otter"]["build"]["context"]
    assert (context / services["otter"]["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def check_node(name: str, service: dict[str, Any]) -> None:
    verb, *flags = service["command"]
    command = grid.get_command(grid.make_context("p2pgrid", [], resilient_parsing=True), verb)
    assert command is not None
    parsed = command.make_context(verb, [str(flag) for flag in flags]).params
    given = {key: value for key, value in parsed.items() if value and key not in ("json", "dir", "join")}
    assert from_flags(given, {}).name == name == service["hostname"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_the_invite_is_made_by_one_and_read_by_others_only() -> None:
    """Who makes it can write it; nodes that join mount it for reading, and start once it is there."""
    services = composed()["services"]
    script = services["invite"]["entrypoint"][-1]

    assert "p2pgrid invite > /invite/new" in script
    assert script.startswith("umask 077;")
    for name in ("heron", "fox"):
        assert services[name]["depends_on"] == {"invite": {"condition": "service_completed_successfully"}}
        assert "invite:/invite:ro" in services[name]["volumes"]
        assert services[name]["command"][-2:] == ["--join", "@/invite/string"]

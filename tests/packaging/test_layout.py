"""The layout that everything else stands on: links, locks, and what the archives are built from."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements-build.lock", "requirements.lock", "requirements-dev.lock")


def pins(lock: str) -> dict[str, set[str]]:
    """Return name → pinned versions of a lock; a universal lock may pin one name twice, by Python version."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("name", ["dht", "node", "simulations"])
def test_folder_is_imported_under_the_package(name: str) -> None:
    """Each top-level folder is one link away from its only import name."""
    inside = ROOT / "p2pgrid" / name
    if not (ROOT / ".git").exists():
        pytest.skip("an sdist holds the folders themselves")

    assert inside.is_symlink()
    assert inside.readlink() == Path("..") / name


@pytest.mark.parametrize("target", ["wheel", "sdist"])
def test_archives_reach_linked_folders_by_the_package_only(target: str) -> None:
    """Without `only-include` the wheel built from the sdist lacks dht and node; naming them doubles each file."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = config["tool"]["hatch"]["build"]["targets"][target]["only-include"]

    assert "p2pgrid" in named
    assert not {"dht", "node", "simulations"} & set(named)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_packages_and_hashes_but_no_place(lock: str) -> None:
    """A lock says what to install, never from where or on whose machine."""
    text = (ROOT / lock).read_text()

    assert "--hash=sha256:" in text
    assert not re.search(r"://|file:|--index|--find-links|(^|[\s\"=])/", text)


def test_npm_lock_names_packages_and_hashes_but_no_place() -> None:
    """`npm install --package-lock-only --omit-lockfile-registry-resolved` makes it so."""
    text = (ROOT / "tests" / "conformance" / "js" / "package-lock.json").read_text()

    assert '"integrity": "sha512-' in text
    assert '"resolved"' not in text


def test_what_users_install_is_what_we_test() -> None:
    """Every pin of the user's lock stands in the developers' lock with the same versions."""
    runtime, dev = pins("requirements.lock"), pins("requirements-dev.lock")

    assert {name: dev.get(name) for name in runtime} == runtime


def test_fastecdsa_comes_as_a_wheel() -> None:
    """The version that libp2p pins has no wheel and would need a compiler."""
    (version,) = pins("requirements.lock")["fastecdsa"]

    assert int(version.split(".")[0]) >= 4

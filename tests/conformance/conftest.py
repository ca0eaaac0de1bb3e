"""Programs in JavaScript for the conformance tests: installed once per lock, outside the repository's own folders."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "js"
NODE_MIN = 20
INSTALL_S = 200
UNREACHED = re.compile(
    r"code (ENOTFOUND|EAI_AGAIN|ECONN\w+|ENET\w+|EHOST\w+|E\w*TIMEDOUT|E\w+_TIMEOUT|ENOTCACHED|ETARGET|E40[134]|E5\d\d)"
)
"""What npm says when it is the registry that is missing; whatever else goes wrong is ours, and fails the tests."""


@pytest.fixture(scope="session")
def js(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which `node peer.mjs` can be run."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    version = subprocess.run([node, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MIN:
        pytest.skip(f"needs node {NODE_MIN} or newer, this is {version}")

    cache = getattr(pytestconfig, "cache", None)  # `-p no:cacheprovider`
    shelf = tmp_path_factory.mktemp("js") if cache is None else cache.mkdir("js")
    lock = (SOURCE / "package-lock.json").read_bytes()
    folder = shelf / hashlib.sha256(lock + version.encode()).hexdigest()[:16]
    if not folder.exists():
        _install(npm, folder)
    for each in SOURCE.glob("*.mjs"):
        shutil.copy(each, folder)
    return folder


def _install(npm: str, folder: Path) -> None:
    """Install beside the folder, then name it so: it is there in one piece or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        made = Path(name) / "js"
        made.mkdir()
        for each in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / each, made)
        words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        try:
            done = subprocess.run(
                words,
                cwd=made,
                check=False,
                capture_output=True,
                text=True,
                timeout=INSTALL_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm has not installed js-libp2p in {INSTALL_S} s")
        if found := UNREACHED.search(done.stderr):
            pytest.skip(f"npm cannot get js-libp2p: {found[1]}")
        assert done.returncode == 0, done.stderr
        if not folder.exists():
            made.rename(folder)

"""What a node never does is not in its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pgrid.node.net.spared import SPARED

LOOK = """
import sys
import p2pgrid.node.net.host
print(*sorted({"httpx", "requests", "rich", "pygments", "charset_normalizer"} & sys.modules.keys()))
from libp2p.peer.id import ID
from libp2p.security.tls.autotls.acme import compute_b36_peer_id
print(compute_b36_peer_id(ID(bytes(range(36)))))
print("httpx" in sys.modules, compute_b36_peer_id.__module__)
from libp2p.security.tls.autotls import acme
print(acme.compute_b36_peer_id(ID(bytes(range(36)))))
print(hasattr(acme, "ACME_DIRECTORY_URL"))
"""


@pytest.fixture(scope="module")
def looked() -> list[str]:
    """What a process says that has imported the host."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_host_brings_no_http_client(looked: list[str]) -> None:
    """Nor what these bring in turn."""
    assert looked[0] == ""


def test_what_is_used_all_the_same_is_imported_then(looked: list[str]) -> None:
    """And is what libp2p means."""
    assert looked[1] == looked[3]
    assert looked[1].startswith("k")
    assert looked[2].startswith("True")
    assert looked[4] == "True"


def test_these_modules_are_still_where_they_were() -> None:
    """On an upgrade: else nothing is spared, or something else is hidden."""
    code = f"""
import importlib
for name, words in {SPARED!r}.items():
    module = importlib.import_module(name)
    print(all(callable(getattr(module, word)) for word in words))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True", "True"]

"""What holds for every test: nodes listen on loopback, on ports nobody else has, and say nothing on the LAN.

`make test` runs several at once (pytest-xdist): no test may use a fixed port, name or folder that another one uses.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, settings

os.environ["P2PGRID_NODE_LISTEN"] = "127.0.0.1:0"
os.environ["P2PGRID_NODE_NO_MDNS"] = "1"

# What a shell starts in the background ignores Ctrl-C, and so would every program that a test starts and interrupts.
# And what nohup starts ignores that its terminal is gone.
if threading.current_thread() is threading.main_thread():
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)

# How fast a machine is that does something else as well says nothing about what is tested.
# And CI tries the same examples every time, as Hypothesis itself has it; what is new is looked for at home.
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ, print_blob=True
)
settings.load_profile("busy")

WIDE = ("session", "package", "module")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a test that starts processes mostly waits for them."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import are never garbage; to look at them again took an eighth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Tests that share a grid of nodes run in one process, that it is made once and not by each of them."""
    for item in items:
        shared = {
            each.scope: each.baseid
            for made in getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - not public, and not typed
            for each in made
            if each.baseid  # in a file of ours
        }
        if group := next((shared[scope] for scope in WIDE if scope in shared), None):
            item.add_marker(pytest.mark.xdist_group(group))

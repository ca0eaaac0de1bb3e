"""Two machines and a wire of 50 Mbit/s between them: joining, a job, a large argument, and a cut that heals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest

import p2pgrid as pg
from tests.system.grids import Node, Nodes, wait
from tests.system.uneven import Running, shared_by, shares
from tests.system.wires import ADDRESSES, WhyNot, Wire
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

MBIT_S = 50
ARGUMENT_BYTES = 50_000_000
CUT_S = 15.0


class Machines:
    """A wire, and a node at each of its ends."""

    def __init__(self, wire: Wire, nodes: Nodes) -> None:
        self.wire = wire
        self.nodes = nodes
        self.near, self.far = (
            nodes.node(name, netns=netns, listen=f"{address}:0")
            for name, netns, address in zip(("near", "far"), wire.names, ADDRESSES, strict=True)
        )
        self.near.start()
        self.far.start(self.near.invite())
        nodes.wait_all_alive()


@pytest.fixture(params=[0, 25], ids=["at once", "25 ms away"])
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    with ExitStack() as stack:
        try:
            wire = stack.enter_context(Wire(MBIT_S, request.param))
        except WhyNot as reason:
            pytest.skip(str(reason))
        yield Machines(wire, stack.enter_context(Nodes(tmp_path, preset="lan")))


def round_trip_s(node: Node) -> float | None:
    """Return the control round trip to the only neighbour, as the node measures it."""
    return next(iter(node.network()["round_trips"].values()), None)


def in_ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.1f} ms"


def fingerprint(data: bytes) -> tuple[str, int, str]:
    here = pg.current()
    return hashlib.sha256(data).hexdigest(), len(data), here.node if here else ""


def test_two_machines_run_a_job(machines: Machines) -> None:
    """Both work, and both know where the other is."""
    with machines.near.grid() as session:
        parts = shared_by(session, {"near", "far"}, 200, 8.0)
    addresses = {each["name"]: each["addresses"] for each in machines.near.members()}

    print(f"shares {parts}; addresses {addresses}")
    assert any(ADDRESSES[1] in address for address in addresses["far"])


def test_a_large_argument_costs_nobody_a_heartbeat(machines: Machines) -> None:
    """50 MB to the other machine; meanwhile nobody suspects anybody and liveness goes on."""
    near, far = machines.near, machines.far
    data = bytes(range(256)) * (ARGUMENT_BYTES // 256)
    idle_s = round_trip_s(near)
    trips: list[float] = []
    looks: list[bool] = []
    with near.grid() as session:
        before = near.network()
        started = time.monotonic()
        future = session.options(where="name == 'far'").submit(fingerprint, data)

        def look() -> bool:
            seen = [*near.view().values(), *far.view().values()]
            assert "dead" not in seen
            looks.append(set(seen) == {"alive"})
            trip = round_trip_s(near)
            if trip is not None:
                trips.append(trip)
            time.sleep(0.1)
            return future.done()

        wait(look, 2 * SOON_S, "the argument is there")
        took_s = time.monotonic() - started
        after = near.network()
        lags = [node.status()["process"]["loop_lag_p99"] for node in (near, far)]
        result = future.result(SOON_S)

    print(
        f"{took_s:.1f} s for {len(data) / 1e6:.0f} MB ({len(data) * 8 / took_s / 1e6:.1f} Mbit/s); control round trip "
        f"idle {in_ms(idle_s)}, under bulk {in_ms(median(trips))} in the middle, at most {in_ms(max(trips))} (goal "
        f"{in_ms(2 * (idle_s or 0.0) + 0.005)}); loops late by {[in_ms(each) for each in lags]} (p99); messages "
        f"{after['messages_sent'] - before['messages_sent']} sent, "
        f"{after['messages_received'] - before['messages_received']} received; nobody was suspected in {sum(looks)} of "
        f"{len(looks)} looks"
    )
    assert sum(looks) > len(looks) / 2  # a machine with much else to do may suspect somebody for a moment
    assert result == (hashlib.sha256(data).hexdigest(), len(data), "far")
    assert took_s > 0.8 * len(data) * 8 / (MBIT_S * 1e6), "it did not go over the wire"
    assert after["messages_received"] > before["messages_received"]


def test_a_cut_wire_heals(machines: Machines) -> None:
    """For 15 s nothing passes: each thinks the other dead; then both are one grid again, and the job is right."""
    near, nodes = machines.near, machines.nodes
    with near.grid() as session:
        job = Running(session, 400, 40.0)
        job.wait(20)
        machines.wire.cut()
        cut = time.monotonic()
        dead_s = nodes.wait_all_see({"far": "dead"}, among=[near])
        nodes.wait_all_see({"near": "dead"}, among=[machines.far])
        wait(lambda: time.monotonic() - cut >= CUT_S, SOON_S, "the wire was cut for a while")
        machines.wire.heal()
        healed_s = nodes.wait_all_alive(90)  # redialling may pause for 30 s
        parts = shares(job.right())

    print(
        f"far is dead for near after {dead_s:.1f} s; all alive {healed_s:.1f} s after the wire is whole; shares {parts}"
    )
    assert parts.keys() == {"near", "far"}

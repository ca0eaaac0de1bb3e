"""Requests on their way through the shell: what the machine cannot answer, and what it cannot answer alone.

It knows no process, no socket and no file: pids, memory, the figures of the network are added to its answers here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import trio

from p2pgrid.core import messages as m
from p2pgrid.node import events as e
from p2pgrid.node.local import LocalServer
from p2pgrid.node.network import Network
from p2pgrid.node.timers import Lag
from p2pgrid.node.vitals import costs
from p2pgrid.node.workers import WorkerPool

UNDER_WAY_MAX = 8192


class Completing:
    """Remembers which answers want more, and adds it."""

    def __init__(
        self,
        network: Network,
        server: LocalServer,
        pool: WorkerPool,
        lag: Lag,
        rows: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """Remember. `rows` gives the members as the request `members` shows them."""
        self._network = network
        self._server = server
        self._pool = pool
        self._lag = lag
        self._rows = rows
        self.objects: Callable[[], dict[str, int]] = dict
        """Gives the figures of objects; empty while nothing is shared."""
        self._asked: dict[tuple[int, int], str] = {}
        self._adds: dict[str, Callable[[Any], Any]] = {
            "status": self._status, "workers": self._workers, "top": self._top,
        }  # fmt: skip

    def asked(self, event: e.ClientSent) -> None:
        """Note a request that goes to the machine."""
        match event.body:
            case [str(verb), dict()] if verb in self._adds:
                if len(self._asked) > UNDER_WAY_MAX:  # answers that never came
                    self._asked.clear()
                self._asked[event.client, event.id] = verb

    def completed(self, effect: e.Reply) -> e.Reply:
        """Return the machine's answer with what only the shell knows."""
        if self._asked and effect.id:
            verb = self._asked.pop((effect.client, effect.id), None)
            if verb is not None and effect.kind == m.ANSWER:
                return replace(effect, body=self._adds[verb](effect.body))
        return effect

    def _status(self, body: Any) -> Any:
        network = self._network
        return {
            **body,
            "node": {**body.get("node", {}), "addresses": list(network.addresses)},
            "grid": self._grid(body),
            "warnings": [*body.get("warnings", ()), *network.warnings(self._rows())],
            "objects": self.objects(),
            "network": network.stats(),
            "process": {
                **costs(),
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "loop_lag_p50": self._lag.quantile(0.5),
                "loop_lag_p99": self._lag.quantile(0.99),
                "refused": self._server.refused,
            },
        }

    def _grid(self, body: Any) -> dict[str, Any]:
        """Return what is known of the grid; who was revoked is in none, whatever it knew of the members last."""
        charter = self._network.charter
        revoked = charter.lost
        alone = {"nodes": 1, "slots": body.get("node", {}).get("slots", 0)} if revoked else {}
        return {**body.get("grid", {}), **alone, "id": charter.grid.hex(), "revoked": revoked}

    def _workers(self, body: Any) -> Any:
        states = {state.worker: state for state in self._pool.states()}
        rows = []
        for row in body["workers"]:
            state = states.get(row["worker"])
            known = {} if state is None else {"pid": state.pid, "state": state.state, "index": state.index}
            rows.append({**row, **known})
        return {**body, "workers": rows}

    def _top(self, body: Any) -> Any:
        stats, me = self._network.stats(), self._network.identity.id
        count = {"messages": stats["messages_sent"] + stats["messages_received"]}
        return {**body, "nodes": [{**row, **count} if row.get("id") == me else row for row in body["nodes"]]}

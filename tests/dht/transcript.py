"""A lookup, written down as it goes: `python -m tests.dht.transcript` prints what docs/kademlia.md shows."""

from __future__ import annotations

from collections import deque

from p2pgrid.dht.keys import key_of, shared_bits
from p2pgrid.dht.lookup import Ask, Done, Lookup, LookupOptions, State
from p2pgrid.dht.machine import Options
from p2pgrid.dht.table import TableOptions
from p2pgrid.dht.wire import Contact
from tests.dht.world import World

NODES, SILENT = 400, 5
OPTIONS = LookupOptions(k=5, alpha=3)
"""Small, so that a page can show it: the real ones are k = 20, α = 10."""
TARGET = key_of(b"calm-river-42")
MARKS = {
    State.HEARD_OF: "not asked",
    State.ASKED: "asked, not waited for",
    State.FAILED: "silent",
    State.ANSWERED: "answered",
}


def name(contact: Contact) -> str:
    return f"{key_of(contact.id):064x}"[:4]


def near(contact: Contact) -> str:
    return f"{name(contact)} ({shared_bits(key_of(contact.id), TARGET)} bits)"


def transcript() -> list[str]:
    world = World(seed=4, options=Options(lookup=OPTIONS, table=TableOptions(k=OPTIONS.k)))
    nodes = [world.node(number) for number in range(NODES)]
    world.fill_tables()
    for node in nodes:
        world._fill(node)
    for node in nodes[:: NODES // (SILENT * 20)]:
        node.alive = False
    me = next(node for node in nodes if node.alive and not shared_bits(key_of(node.id), TARGET))
    known = me.machine.table.closest(TARGET, OPTIONS.k)
    lookup = Lookup(TARGET, known, OPTIONS, OPTIONS.beta_find, me.id)

    lines = [
        f"{name(me.contact)} looks for {f'{TARGET:064x}'[:4]} among {NODES} nodes, some of them gone;",
        f"k = {OPTIONS.k}, α = {OPTIONS.alpha}, β = {OPTIONS.beta_find}. In brackets: leading bits in common with it.",
        "",
        "of its table the nearest:",
        *(f"    {near(each)}" for each in known),
        "",
    ]
    waiting: deque[Contact] = deque()
    while not isinstance(step := lookup.next(), Done):
        if isinstance(step, Ask):
            lines.append(f"ask     {near(step.peer)}")
            waiting.append(step.peer)
        else:
            lines += _hears(world, lookup, waiting.popleft())
    lines += ["", f"done after {lookup.asked} questions and {lookup.rounds} round trips. The nearest it heard of:"]
    lines += [f"    {near(each)}  {MARKS[state]}" for each, state in lookup.candidates()[:8]]
    living = sorted((n for n in nodes if n.alive), key=lambda node: key_of(node.id) ^ TARGET)
    right = [node.id for node in living[:3]] == [each.id for each in step.closest[:3]]
    return [*lines, f"The three nearest that answered are the three nearest that live: {'yes' if right else 'no'}."]


def _hears(world: World, lookup: Lookup, peer: Contact) -> list[str]:
    node = world.nodes[peer.id]
    if not node.alive:
        lookup.failed(peer.id)
        return [f"silent  {near(peer)}: given up"]
    before = {each.id for each, _ in lookup.candidates()}
    named = node.machine.table.closest(lookup.target, OPTIONS.k)
    lookup.answered(peer.id, named)
    fresh = [each for each in named if each.id not in before]
    return [f"answer  {near(peer)}: names {', '.join(map(near, fresh)) or 'nobody new'}"]


if __name__ == "__main__":
    print("\n".join(transcript()))

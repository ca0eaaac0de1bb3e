"""Idle nodes take work from busy ones: what is said, what is covered meanwhile, what happens when frames are lost."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import chains
from p2pgrid.core import messages as m
from p2pgrid.core.batch import content_id, pickled_function
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from tests.node.desk import CODE, JOB, UNION, Desk, batch, runs, sends, tasks
from tests.node.test_machine_members import FACTS, keeper, waiting, want


def victim(count: int = 10, slots: int = 1) -> Desk:
    """Return a busy node that holds `count` tasks of one second, a keeper `k` and an idle member `t`."""
    desk = Desk(slots=slots)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS), e.PeerUp("t", {**FACTS, "slots": slots}))
    desk.do(e.PeerSent("k", m.P_WORK, []))
    ((rid, *_),) = sends(desk.all, m.P_WANT)
    grant = [rid, JOB, "calm-river-1", [[0, count, 1, False]], [[CODE, UNION]], [[0, count, batch(0, count)]]]
    desk.do(e.PeerSent("k", m.P_GRANT, grant))
    desk.all = [one for one in desk.all if not isinstance(one, e.Send)]
    return desk


def steal(desk: Desk, number: int = 1, rates: Any = (), has: Any = (), thief: str = "t") -> list[e.Effect]:
    """Let the idle member ask; return what follows."""
    return desk.do(e.PeerSent(thief, m.P_STEAL, [[9, number], [list(one) for one in rates], [list(o) for o in has]]))


def handed(body: Any) -> list[int]:
    """Return the tasks of a hand-over."""
    return [i for lo, hi, *_ in body[4] for i in range(lo, hi)]


def ready(desk: Desk) -> list[tuple[int, int]]:
    """Return the tasks that wait at a node."""
    work = desk.machine.pool.works.get(JOB)
    return [span for lane in work.lanes.values() for span in lane.ready] if work else []


# ---- the victim -----------------------------------------------------------------------------------------------------


def test_a_victim_hands_over_half_of_what_waits_from_the_back() -> None:
    """With functions and inputs, under the keeper's attempt numbers; it goes on claiming them as handed over."""
    desk = victim()
    (body,) = sends(steal(desk), m.P_HANDOVER)

    assert body[:4] == [[9, 1], "k", JOB, "calm-river-1"]
    assert handed(body) == [6, 7, 8, 9]
    assert body[5] == [[CODE, UNION]]
    assert body[6] == [[6, 10, batch(6, 10)]]
    assert ready(desk) == [(1, 6)]
    (said,) = sends(desk.wait(1.0), m.P_CLAIM)[:1]
    assert said[3] == [[JOB, [0, 6], [0, 1], [["t", [6, 10]]]]]


def test_halves_are_weighted_by_speed() -> None:
    """A thief that is four times as fast gets four fifths; a slow one its part, but none that would end sooner here."""
    desk = victim(11)
    run = runs(desk.all)[0]
    desk.finish(run, busy_s=1.0)
    (body,) = sends(steal(desk, rates=[(CODE, 0.25)]), m.P_HANDOVER)
    assert len(handed(body)) == 7
    desk = victim(11)
    desk.finish(runs(desk.all)[0], busy_s=1.0)
    (body,) = sends(steal(desk, rates=[(CODE, 4.0)]), m.P_HANDOVER)
    assert len(handed(body)) == 2
    desk = victim(3)
    desk.finish(runs(desk.all)[0], busy_s=1.0)

    assert sends(steal(desk, rates=[(CODE, 60.0)]), m.P_HANDOVER) == []


def test_what_the_thief_has_does_not_travel() -> None:
    """Functions, and packed runs as a whole."""
    desk = victim()
    (body,) = sends(steal(desk, has=[(JOB, [CODE], [])]), m.P_HANDOVER)
    assert body[5] == []
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS), e.PeerUp("t", FACTS))
    grant = [[7, 1], JOB, "j", [[0, 10, 1]], [[CODE, UNION]], [[0, 20, batch(0, 20, packed=True)]]]
    desk.do(e.PeerSent("k", m.P_GRANT, grant))
    (body,) = sends(steal(desk, has=[(JOB, [], [0, 20])]), m.P_HANDOVER)
    assert body[6] == [[0, 20, b""]]


def test_a_request_that_arrives_twice_is_given_one_hand_over() -> None:
    """The same again while it is not acknowledged, nothing afterwards."""
    desk = victim()
    (first,) = sends(steal(desk), m.P_HANDOVER)
    assert sends(steal(desk), m.P_HANDOVER) == [first]
    desk.do(e.PeerSent("t", m.P_HANDED, [[9, 1], True]))

    assert not [one for one in steal(desk) if isinstance(one, e.Send)]
    assert ready(desk) == [(1, 6)]


def test_what_is_never_acknowledged_is_sent_three_times_and_taken_back() -> None:
    """It was claimed all the time, and runs here."""
    desk = victim()
    steal(desk)
    out = desk.wait(3.5)

    assert len(sends(out, m.P_HANDOVER)) == 2
    assert ready(desk) == [(1, 10)]
    assert sends(desk.wait(1.0), m.P_CLAIM)[-1][3] == [[JOB, [0, 10], [0, 1]]]


def test_what_was_acknowledged_is_claimed_a_little_longer() -> None:
    """So that the thief's claim is there before; a second acknowledgement changes nothing."""
    desk = victim()
    steal(desk)
    desk.do(*[e.PeerSent("t", m.P_HANDED, [[9, 1], True])] * 2)
    claims = [said[3] for said in sends(desk.wait(5.0), m.P_CLAIM)]

    assert claims[0] == [[JOB, [0, 6], [0, 1], [["t", [6, 10]]]]]
    assert claims[-1] == [[JOB, [0, 6], [0, 1]]]
    assert ready(desk) == [(1, 6)]


@pytest.mark.parametrize("how", ["refused", "reset"])
def test_what_the_thief_does_not_take_is_back_at_once(how: str) -> None:
    """Because it has enough, or because it died."""
    desk = victim()
    steal(desk)
    if how == "refused":
        desk.do(e.PeerSent("t", m.P_HANDED, [[9, 1], False]))
    else:
        desk.do(e.PeerDown("t", reset=True))

    assert ready(desk) == [(1, 10)]


def test_what_was_done_elsewhere_is_not_taken_back() -> None:
    """The keeper said so meanwhile."""
    desk = victim()
    steal(desk)
    desk.do(e.PeerSent("k", m.P_DROP, [JOB, [7, 9]]), e.PeerSent("t", m.P_HANDED, [[9, 1], False]))

    assert ready(desk) == [(1, 7), (9, 10)]


def test_too_little_is_refused_and_others_are_named() -> None:
    """One task that runs is not to be had."""
    desk = victim(1)
    desk.do(e.PeerUp("v", FACTS), e.PeerSent("k", m.P_NONE, [[7, 99], [["v", 5.0], ["nobody", 9.0]]]))
    out = steal(desk)

    assert sends(out, m.P_HANDOVER) == []
    assert sends(out, m.P_NOTHING) == [[[9, 1], [["v", 5.0]]]]


def test_who_may_not_or_cannot_run_it_gets_nothing() -> None:
    """A member without the role, one that lacks what the tasks ask for, a suspect."""
    desk = victim()
    desk.do(e.PeerUp("t", FACTS, None, chains.SUBMIT))
    assert sends(steal(desk), m.P_HANDOVER) == []
    desk.do(e.PeerUp("t", {**FACTS, "minor": 12}))
    assert sends(steal(desk, 2), m.P_HANDOVER) == []
    desk.do(e.PeerUp("t", FACTS))
    desk.machine.parts.suspects.add("t")
    assert sends(steal(desk, 3), m.P_HANDOVER) == []
    desk.machine.parts.suspects.clear()

    assert len(sends(steal(desk, 4), m.P_HANDOVER)) == 1


def test_who_waits_on_a_lifeline_is_served_when_work_comes() -> None:
    """Once, unasked."""
    desk = victim(1)
    desk.do(e.PeerSent("t", m.P_LIFELINE, [[9, 4], 60.0, [], []]))
    more = [[7, 50], JOB, "j", [[1, 11, 1]], [], [[1, 11, batch(1, 11)]]]
    (body,) = sends(desk.do(e.PeerSent("k", m.P_GRANT, more)), m.P_HANDOVER)

    assert body[0] == [9, 4]
    assert handed(body) == [6, 7, 8, 9, 10]
    assert not desk.machine.victim.waiters


def test_a_lifeline_ends() -> None:
    """After its time, or with its connection."""
    for ends in ("time", "connection"):
        desk = victim(1)
        desk.do(e.PeerSent("t", m.P_LIFELINE, [[9, 4], 1.0, [], []]))
        if ends == "time":
            desk.wait(1.5)
        else:
            desk.do(e.PeerDown("t", reset=False), e.PeerUp("t", FACTS))
        more = [[7, 50], JOB, "j", [[1, 11, 1]], [], [[1, 11, batch(1, 11)]]]
        assert sends(desk.do(e.PeerSent("k", m.P_GRANT, more)), m.P_HANDOVER) == []


def test_a_request_that_was_answered_waits_no_more() -> None:
    """Doubled and late, it is still given one hand-over."""
    desk = victim()
    line = e.PeerSent("t", m.P_LIFELINE, [[9, 1], 60.0, [], []])
    first, again = sends(desk.do(line, line) + steal(desk) + desk.do(line), m.P_HANDOVER)
    assert first == again
    desk.do(e.PeerSent("t", m.P_HANDED, [[9, 1], True]))
    assert sends(desk.do(line) + steal(desk) + desk.wait(1.0), m.P_HANDOVER) == []

    assert ready(desk) == [(1, 6)]


def test_what_the_thief_keeps_itself_is_given_back_to_it() -> None:
    """A keeper that is idle takes its own tasks back; nothing more comes of its request."""
    desk = victim()
    out = steal(desk, thief="k")

    assert sends(out, m.P_RETURN) == [[JOB, [4, 10], "", False]]
    assert sends(out, m.P_NOTHING) == [[[9, 1], []]]
    assert ready(desk) == [(1, 4)]


def test_what_comes_back_by_another_way_runs_here() -> None:
    """The thief was robbed of it by this node, or its keeper grants it again."""
    desk = victim()
    steal(desk)
    desk.do(e.PeerSent("t", m.P_HANDED, [[9, 1], True]))
    desk.do(e.PeerSent("k", m.P_GRANT, [[7, 60], JOB, "j", [[8, 10, 2]], [], [[8, 10, batch(8, 10)]]]))
    assert ready(desk) == [(1, 6), (8, 10)]
    claims = [said[3] for said in sends(desk.wait(5.0), m.P_CLAIM)]

    assert claims[-1] == [[JOB, [0, 6, 8, 10], [0, 1]]]


def test_a_node_that_ends_gives_back_what_it_still_has() -> None:
    """Not what its thief runs."""
    desk = victim(10)
    steal(desk)
    desk.do(e.PeerSent("t", m.P_HANDED, [[9, 1], True]))
    out = desk.do(e.Leaving())

    assert [body[1] for body in sends(out, m.P_RETURN)] == [[0, 6]]


# ---- the thief ------------------------------------------------------------------------------------------------------


def thief(hints: Any = (("v", 9.0),), slots: int = 1) -> Desk:
    """Return an idle node whose keeper `k` has no work and says who holds some."""
    desk = Desk(slots=slots)
    desk.ready()
    desk.do(*(e.PeerUp(name, FACTS) for name in ("k", "v", "w", "x")))
    desk.do(e.PeerSent("k", m.P_WORK, []))
    ((rid, *_),) = sends(desk.all, m.P_WANT)
    desk.do(e.PeerSent("k", m.P_NONE, [rid, [list(one) for one in hints]]))
    return desk


def asked(desk: Desk) -> list[tuple[str, Any]]:
    """Return who was asked for work, and by which request."""
    return [(one.peer, one.body[0]) for one in desk.all if isinstance(one, e.Send) and one.kind == m.P_STEAL]


def handover(rid: Any, lo: int = 6, hi: int = 10, how: Any = "k") -> list[Any]:
    """Return a hand-over of tasks that `k` keeps."""
    return [list(rid), how, JOB, "calm-river-1", [[lo, hi, 3, False]], [[CODE, UNION]], [[lo, hi, batch(lo, hi)]]]


def test_a_thief_claims_before_it_acknowledges_and_reports_to_the_keeper() -> None:
    """The attempt number is the keeper's, and so are the results."""
    desk = thief()
    ((who, rid),) = asked(desk)
    out = desk.do(e.PeerSent("v", m.P_HANDOVER, handover(rid)))
    said = [(one.peer, one.kind, one.body) for one in out if isinstance(one, e.Send)]

    assert who == "v"
    assert [(peer, kind) for peer, kind, _ in said[:2]] == [("k", m.P_CLAIM), ("v", m.P_HANDED)]
    assert said[0][2][3] == [[JOB, [6, 10], []]]
    assert said[1][2] == [rid, True]
    (run,) = runs(out)
    assert tasks(run) == [6]
    assert run.context["attempt"] == 3
    results = [one for one in desk.finish(run) if isinstance(one, e.Send) and one.kind == m.P_RESULTS]
    assert [(one.peer, one.body[0][2]) for one in results] == [("k", 3)]
    assert desk.machine.parts.counts["stolen"] == 4


def test_a_hand_over_that_arrives_twice_is_taken_once() -> None:
    """And acknowledged twice."""
    desk = thief()
    ((_, rid),) = asked(desk)
    out = desk.do(*[e.PeerSent("v", m.P_HANDOVER, handover(rid))] * 2)

    assert sends(out, m.P_HANDED) == [[rid, True]] * 2
    assert ready(desk) == [(7, 10)]


@pytest.mark.parametrize("what", ["a former life", "an unknown keeper", "a keeper that may not", "a busy thief"])
def test_what_is_not_to_be_taken_is_refused(what: str) -> None:
    """The victim has it back at once."""
    desk = thief()
    ((_, rid),) = asked(desk)
    body = handover(rid)
    if what == "a former life":
        body[0] = [rid[0] - 1, 1]
    elif what == "an unknown keeper":
        body[1] = "stranger"
    elif what == "a keeper that may not":
        desk.do(e.PeerRoles("k", chains.WORK))
    else:
        desk.do(e.PeerSent("v", m.P_HANDOVER, handover(rid)))
        body[0] = [rid[0], 77]
    held = ready(desk)
    out = desk.do(e.PeerSent("v", m.P_HANDOVER, body))

    assert sends(out, m.P_HANDED) == [[body[0], False]]
    assert ready(desk) == held


def test_a_forged_function_costs_the_connection() -> None:
    """Its id says something else."""
    desk = thief()
    ((_, rid),) = asked(desk)
    body = handover(rid)
    body[5] = [[CODE, pickled_function(11, b"another")]]
    out = desk.do(e.PeerSent("v", m.P_HANDOVER, body))

    assert [one.peer for one in out if isinstance(one, e.Drop)] == ["v"]
    assert ready(desk) == []
    assert content_id(UNION) == CODE


def test_who_does_not_answer_has_nothing_and_then_the_node_is_dormant() -> None:
    """Two are asked, then lifelines are left, then it is quiet until the keepers are asked once more, ever later."""
    desk = thief((("v", 9.0), ("w", 8.0), ("x", 7.0)))
    out = desk.all + desk.wait(2.0)
    lines = [one.peer for one in out if isinstance(one, e.Send) and one.kind == m.P_LIFELINE]

    assert len(asked(desk)) == 2
    assert len(set(lines)) == len(lines) >= 3
    wants = sends(desk.wait(60.0), m.P_WANT)
    assert 1 <= len({tuple(body[0]) for body in wants}) <= 8


def test_after_a_refusal_the_next_is_asked() -> None:
    """Another one, with what the first knew."""
    desk = thief()
    ((_, rid),) = asked(desk)
    desk.do(e.PeerSent("v", m.P_NOTHING, [rid, [["x", 4.0]]]))

    assert [who for who, _ in asked(desk)] == ["v", "x"]


def test_who_is_named_before_it_is_connected_is_asked_then() -> None:
    """A node that joins meets the keeper first, and the victim a moment later."""
    desk = thief((("late", 9.0),))
    assert asked(desk) == []
    desk.do(e.PeerUp("late", FACTS))

    assert [who for who, _ in asked(desk)] == ["late"]


def test_far_members_are_asked_beside_near_ones() -> None:
    """One request of each kind under way."""
    desk = Desk(slots=1, preset="wan")
    desk.ready()
    desk.do(*(e.PeerUp(name, FACTS) for name in ("k", "near", "far")))
    desk.machine.parts.round_trip_s = lambda peer: 0.001 if peer == "near" else 0.05
    desk.do(e.PeerSent("k", m.P_WORK, []))
    ((rid, *_),) = sends(desk.all, m.P_WANT)
    desk.do(e.PeerSent("k", m.P_NONE, [rid, [["near", 3.0], ["far", 3.0]]]))

    assert sorted(who for who, _ in asked(desk)) == ["far", "near"]


def test_members_that_may_not_hand_out_work_are_not_asked() -> None:
    """Whoever may not submit decides about no code here."""
    desk = Desk(slots=1)
    desk.ready()
    desk.do(e.PeerUp("k", FACTS), e.PeerUp("v", FACTS, None, chains.WORK))
    desk.do(e.PeerSent("k", m.P_WORK, []))
    ((rid, *_),) = sends(desk.all, m.P_WANT)
    desk.do(e.PeerSent("k", m.P_NONE, [rid, [["v", 3.0]]]))

    assert asked(desk) == []
    assert sends(desk.do(e.PeerSent("v", m.P_HANDOVER, handover([7, 3]))), m.P_HANDED) == [[[7, 3], False]]


# ---- the keeper -----------------------------------------------------------------------------------------------------


def covered(desk: Desk) -> dict[str, list[int]]:
    """Return who covers what."""
    held = {peer: holder.covered.get(JOB, RangeSet()).flat() for peer, holder in desk.machine.leases.holders.items()}
    return {peer: flat for peer, flat in held.items() if flat}


def say(desk: Desk, peer: str, seq: int, held: list[int], handed_over: list[int] | None = None) -> list[e.Effect]:
    """Let a member claim."""
    runs_now = [held[0], held[0] + 1] if held else []
    row = [JOB, held, runs_now, *([[["q", handed_over]]] if handed_over else [])]
    return desk.do(e.PeerSent(peer, m.P_CLAIM, [5, seq, 1.0, [row] if held or handed_over else []]))


def lent(count: int = 4) -> Desk:
    """Return a keeper all of whose tasks `p` holds, and another member `q`."""
    desk = keeper(count)
    desk.do(e.PeerUp("q", {**FACTS, "name": "q"}))
    number = 0
    while waiting(desk):
        number += 1
        want(desk, number)
        desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, number], 1]))
    say(desk, "p", 1, [0, count])
    return desk


@pytest.mark.parametrize("first", ["victim", "thief"])
def test_a_claim_moves_ranges_from_victim_to_thief(first: str) -> None:
    """Whichever claim is there first, nothing is ever uncovered, and nobody is charged."""
    desk = lent()
    steps = [("q", 1, [2, 4], None), ("p", 2, [0, 2], [2, 4]), ("q", 2, [2, 4], None)]
    for peer, seq, held, out in steps[1:] if first == "victim" else steps:
        say(desk, peer, seq, held, out)
        assert waiting(desk) == []
        assert RangeSet(s for flat in covered(desk).values() for s in RangeSet.from_flat(flat)).flat() == [0, 4]
    say(desk, "p", 3, [0, 2])

    assert covered(desk) == {"p": [0, 2], "q": [2, 4]}
    assert waiting(desk) == []
    kept = desk.machine.keeping.jobs[JOB]
    assert kept.record.tries == {}
    assert kept.record.attempts.get(2) is None


def test_what_a_victim_omits_and_no_thief_claims_runs_again() -> None:
    """The thief died before it could say anything."""
    desk = lent()
    say(desk, "p", 2, [0, 2], [2, 4])
    assert waiting(desk) == []
    say(desk, "p", 3, [0, 2])

    assert waiting(desk) == [(2, 4)]
    assert desk.machine.keeping.jobs[JOB].record.tries == {}


def test_a_thief_that_dies_is_charged_for_what_it_ran() -> None:
    """Its victim is not, though it still names the ranges."""
    desk = lent()
    say(desk, "p", 2, [0, 2], [2, 4])
    say(desk, "q", 1, [2, 4])
    desk.do(e.PeerDown("q", reset=True))
    for seq in range(3, 6):
        desk.wait(0.9)
        say(desk, "p", seq, [0, 2], [2, 4] if seq == 3 else None)

    assert waiting(desk) == [(2, 4)]
    assert list(desk.machine.keeping.jobs[JOB].record.tries) == [2]


def test_a_victim_that_dies_takes_nothing_of_its_thief_along() -> None:
    """Only what it held itself runs again."""
    desk = lent()
    say(desk, "p", 2, [0, 2], [2, 4])
    say(desk, "q", 1, [2, 4])
    desk.do(e.PeerDown("p", reset=True))
    desk.wait(0.8)
    say(desk, "q", 2, [2, 4])
    desk.wait(0.8)

    assert waiting(desk) == [(0, 2)]
    assert covered(desk) == {"q": [2, 4]}


def test_a_thief_may_give_back_what_its_victim_still_names() -> None:
    """It is granted anew at once, and the victim's next claims do not hinder that."""
    desk = lent()
    say(desk, "p", 2, [0, 2], [2, 4])
    say(desk, "q", 1, [2, 4])
    desk.do(e.PeerSent("q", m.P_RETURN, [JOB, [3, 4], "", False]))
    assert waiting(desk) == [(3, 4)]
    say(desk, "p", 3, [0, 2], [2, 4])
    say(desk, "p", 4, [0, 2])

    assert waiting(desk) == [(3, 4)]
    assert desk.machine.keeping.jobs[JOB].record.attempts.get(3) is None


def test_only_who_had_tasks_can_hand_them_over() -> None:
    """Two that may only work cannot keep a job from everybody by naming each other."""
    desk = keeper()
    desk.do(e.PeerUp("q", FACTS))
    want(desk)
    say(desk, "p", 1, [0, 1], [1, 4])
    say(desk, "q", 1, [0, 4])

    assert covered(desk)["q"] == [1, 2]
    assert waiting(desk) == [(2, 4)]


@pytest.mark.parametrize("size", [1, 10_000])
def test_results_of_a_thief_that_is_not_named_yet_are_awaited(size: int) -> None:
    """They are neither believed nor acknowledged before its victim has said so; small ones need not come again then."""
    desk = lent()
    entry = [JOB, [5, 1], 1, [[3, 4, 0, [b"v" * size]]]]
    for _ in range(2):
        assert sends(desk.do(e.PeerSent("q", m.P_RESULTS, [entry])), m.P_RESULTS_ACK) == []
    assert not desk.machine.keeping.jobs[JOB].done
    say(desk, "p", 2, [0, 3], [3, 4])
    if size > 1:
        desk.do(e.PeerSent("q", m.P_RESULTS, [entry]))

    assert sends(desk.sync(), m.P_RESULTS_ACK) == [[[JOB, 5, 1]]]
    assert desk.machine.keeping.jobs[JOB].done.flat() == [3, 4]


def test_people_are_told_what_was_moved() -> None:
    """Counts by node, and why a task is where it is."""
    desk = lent()
    name = desk.machine.keeping.jobs[JOB].name
    say(desk, "p", 2, [0, 2], [2, 4])
    say(desk, "q", 1, [2, 4])
    desk.now += 7
    say(desk, "q", 2, [2, 4])
    shown = desk.answer("show", target=name)
    lines = desk.answer("explain", target=f"{name}/0-3")["lines"]

    assert shown["moves"] == [{"node": "q", "stolen": 2, "prefetched": 0, "rerun": 0}]
    assert shown["job"]["stolen"] == 2
    assert "task 2: running at q, held there for 7 s, stolen from p, attempt 1" in lines
    assert "q: 2 stolen" in lines
    assert desk.answer("load")["node"]["stolen"] == 0
    assert shown["job"]["moves"] == shown["moves"]


def test_explain_says_which_ranges_are_where_and_why() -> None:
    """Granted, prefetched, stolen; and from whom it came, once it is done."""
    desk = lent(12)
    name = desk.machine.keeping.jobs[JOB].name
    say(desk, "p", 2, [0, 8], [8, 12])
    say(desk, "q", 1, [8, 12])
    desk.now += 7
    told = desk.answer("explain", target=name)["lines"]
    desk.do(e.PeerSent("q", m.P_RESULTS, [[JOB, [5, 1], 1, [[8, 10, 0, [b"v"] * 2]]]]))
    after = desk.answer("explain", target=f"{name}/0-11")["lines"]

    assert [line for line in told if line.startswith("task")] == [
        "tasks 0-7: at p, held there for 7 s, granted to a free slot",
        "tasks 8-11: at q, held there for 7 s, stolen from p",
    ]
    assert "tasks 8-9: done at q, stolen from p, attempt 1" in after
    assert "tasks 10-11: queued at q, held there for 7 s, stolen from p, attempt 1" in after


def test_a_member_that_joins_late_is_told_of_work_that_others_hold() -> None:
    """Only one that could run it."""
    desk = lent(12)
    assert sends(desk.do(e.PeerUp("r", {**FACTS, "minor": 12})), m.P_WORK) == []
    assert sends(desk.do(e.PeerUp("s", FACTS)), m.P_WORK) == [[]]


def test_who_asks_in_vain_is_told_who_holds_how_much() -> None:
    """Only what is more than its holder can run at once."""
    desk = lent(12)
    (none,) = sends(desk.do(e.PeerSent("q", m.P_WANT, [[6, 1], 2, 0.0, 1.0])), m.P_NONE)
    assert [peer for peer, _ in none[1]] == ["p"]
    desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [5, 9], 1, [[2, 12, 0, [b"v"] * 10]]]]))

    assert sends(desk.do(e.PeerSent("q", m.P_WANT, [[6, 2], 2, 0.0, 1.0])), m.P_NONE) == [[[6, 2]]]


def test_an_old_claim_takes_nothing_out_of_the_pool() -> None:
    """It arrives after its member gave the ranges back and acknowledged others: nobody would ever run them."""
    desk = keeper(8)
    want(desk, 1)
    want(desk, 2)
    desk.do(e.PeerSent("p", m.P_RETURN, [JOB, [0, 2], "", False]))
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[5, 2], 5]))
    say(desk, "p", 2, [0, 4])

    assert waiting(desk) == [(0, 2), (4, 8)]

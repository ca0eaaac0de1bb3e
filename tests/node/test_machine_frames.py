"""Whatever clients and members send, a machine answers ERROR or logs a line, and works on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core import messages as m
from p2pgrid.core.batch import encode_batch
from p2pgrid.core.chains import ALL_ROLES, OBSERVE, WORK
from p2pgrid.core.member import ALIVE, Card, shown
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.inquiries import ASKERS_MAX
from p2pgrid.node.logs import PATIENCE_S, last_logs
from tests.node.desk import CODE, JOB, UNION, Desk, batch, replies, runs, sends, spec


def _deep(levels: int = 1010) -> Any:
    """Return lists in each other, as many as msgpack reads: to compare or to print them exceeds the stack."""
    return unpack(b"\x91" * levels + b"\xc0")


numbers = st.integers(-2, 5) | st.sampled_from([2**62, 2**63 - 1, 2**64 - 1, -(2**63), 10**6])
scalars = (
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=5)
    | st.sampled_from([JOB, CODE, b"", b"k" * 16, UNION, spec(), batch(0, 2), batch(2, 4)])
    | st.sampled_from([pack({"mro": 1}), pack(["a", "b", "c"]), pack({"text": "", "qualname": _deep(1000)})])
    | st.just(_deep(1000))
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
small = st.integers(0, 4)
ranges = st.lists(st.integers(0, 6), max_size=6)
rids = st.tuples(st.sampled_from([7, 5, 1]), st.integers(0, 3)).map(list)
jobs = st.sampled_from([JOB, b"k" * 16])
outcomes = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 4]), anything).map(list), max_size=2
)
verbs = st.sampled_from(["status", "jobs", "show", "explain", "logs", "cancel", "find", "workers", "nonsense"])
targets = st.sampled_from(["last", "all", "last/0", "last/0-9", "", "/", "zz", "last/-1", "last/99999999999999999999"])

almost_client = st.one_of(
    st.tuples(st.just(m.OPEN), st.tuples(jobs, st.just(spec()) | anything).map(list)),
    st.tuples(st.just(m.CODE), st.tuples(jobs, st.just(CODE), st.just(UNION) | anything).map(list)),
    st.tuples(
        st.just(m.INPUT), st.tuples(jobs, numbers, numbers, st.sampled_from([batch(0, 2), batch(1, 4)])).map(list)
    ),
    st.tuples(st.just(m.CLOSE), st.tuples(jobs, numbers).map(list)),
    st.tuples(st.sampled_from([m.WATCH, m.CANCEL]), st.tuples(jobs, ranges | st.none() | anything).map(list)),
    st.tuples(st.just(m.GOT), st.tuples(jobs, numbers | anything).map(list)),
    st.tuples(st.just(m.UNWATCH), st.tuples(jobs).map(list)),
    st.tuples(st.just(m.REQUEST), st.tuples(verbs, st.fixed_dictionaries({"target": targets | anything})).map(list)),
)
client_frames = almost_client | st.tuples(st.integers(0, 120).filter(lambda kind: kind != m.REQUEST), anything)

cards = st.tuples(
    small, small, st.just(b"lifelife"), st.booleans(), st.lists(st.text(max_size=5), max_size=2),
    st.dictionaries(st.sampled_from(["name", "slots", "tags", "resources", "minor", "other"]), anything, max_size=4),
    st.just([]),
).map(list)  # fmt: skip
updates = st.tuples(
    st.sampled_from(["n", "p", "q"]), numbers, st.integers(0, 3), st.just("p"), st.none() | cards
).map(list)  # fmt: skip

hints = st.lists(st.tuples(st.sampled_from(["p", "q", ""]), numbers).map(list), max_size=2) | anything
rates = st.lists(st.tuples(st.just(CODE) | scalars, numbers).map(list), max_size=2) | anything
has = st.lists(st.tuples(jobs, st.lists(st.just(CODE) | scalars, max_size=2), ranges).map(list), max_size=2) | anything
almost_peer = st.one_of(
    st.tuples(st.just(m.P_WANT), st.tuples(rids, numbers, anything).map(list)),
    st.tuples(
        st.just(m.P_GRANT),
        st.tuples(
            rids, jobs, st.just("name"),
            st.lists(st.tuples(small, small, numbers).map(list), max_size=2),
            st.just([[CODE, UNION]]) | anything,
            st.lists(st.tuples(small, small, st.just(batch(0, 2)) | anything).map(list), max_size=2),
        ).map(list),
    ),
    st.tuples(st.just(m.P_GRANT_ACK), st.tuples(rids, numbers).map(list)),
    st.tuples(st.just(m.P_NONE), st.tuples(rids).map(list)),
    st.tuples(
        st.just(m.P_CLAIM),
        st.tuples(numbers, numbers, numbers, st.lists(st.tuples(jobs, ranges, ranges).map(list), max_size=2)).map(list),
    ),
    st.tuples(
        st.just(m.P_RESULTS),
        st.lists(st.tuples(jobs, rids, numbers, outcomes).map(list), max_size=2),
    ),
    st.tuples(st.just(m.P_RESULTS_ACK), st.lists(st.tuples(jobs, st.just(7), st.integers(0, 9)).map(list), max_size=2)),
    st.tuples(st.just(m.P_DROP), st.tuples(jobs, ranges | st.none()).map(list)),
    st.tuples(st.just(m.P_STEAL), st.tuples(rids, rates, has).map(list)),
    st.tuples(st.just(m.P_LIFELINE), st.tuples(rids, numbers, rates, has).map(list)),
    st.tuples(st.just(m.P_HANDED), st.tuples(rids, st.booleans()).map(list)),
    st.tuples(st.just(m.P_NOTHING), st.tuples(rids, hints).map(list)),
    st.tuples(st.just(m.P_NONE), st.tuples(rids, hints).map(list)),
    st.tuples(
        st.just(m.P_HANDOVER),
        st.tuples(
            rids, st.sampled_from(["p", "q"]), jobs, st.just("name"),
            st.lists(st.tuples(small, small, numbers).map(list), max_size=2),
            st.just([[CODE, UNION]]) | anything,
            st.lists(st.tuples(small, small, st.just(batch(0, 2)) | anything).map(list), max_size=2),
        ).map(list),
    ),
    st.tuples(st.just(m.P_RETURN), st.tuples(jobs, ranges, st.text(max_size=4)).map(list)),
    st.tuples(
        st.just(m.P_ASK), st.tuples(rids, verbs, st.fixed_dictionaries({"target": targets | anything})).map(list)
    ),
    st.tuples(st.sampled_from([m.P_ANSWER, m.P_ERROR]), st.tuples(rids, anything).map(list)),
    st.tuples(st.sampled_from([m.P_GOSSIP, m.P_RECORDS]), st.lists(st.lists(updates, max_size=3), min_size=1)),
)  # fmt: skip
peer_frames = almost_peer | st.tuples(st.integers(90, 120) | st.integers(143, 149), anything)


def _desk() -> Desk:
    desk = Desk(slots=2)
    desk.ready()
    desk.join()
    desk.do(e.Belongs(b"g" * 32, "g", 15), e.Listens(("/ip4/192.0.2.1/tcp/1",)))
    facts = {"name": "p", "slots": 2, "minor": 11, "resources": {"cpu": 2}}
    desk.do(e.PeerUp("p", facts, Card(5, 0, b"12345678", False, (), facts, ()), ALL_ROLES))  # noqa: FBT003
    desk.submit(4, close=False)
    return desk


def _still_works(desk: Desk) -> None:
    """See that the machine runs a new job of a new client to its end, after all that happened to it."""
    fresh = b"f" * 16
    desk.join(client=2, session=b"t" * 16)
    desk.say(m.OPEN, [fresh, spec(b"t" * 16)], client=2)
    desk.say(m.CODE, [fresh, CODE, UNION], client=2)
    desk.say(m.INPUT, [fresh, 0, 1, batch(0, 1, {"priority": 1000})], client=2)
    desk.say(m.CLOSE, [fresh, 1], client=2)
    desk.say(m.WATCH, [fresh, []], client=2)
    desk.sync()
    handled: set[int] = set()
    for _ in range(40):
        desk.wait(1.2)
        for run in runs(desk.all):
            if run.run in handled or desk.machine.running.find(run.worker, run.run) is None:
                continue
            handled.add(run.run)
            desk.finish(run)
        if desk.machine.keeping.jobs[fresh].state == "done":
            break
    desk.sync()

    assert [fresh, "done", ""] in replies(desk.all, m.STATE)


@settings(deadline=None)
@given(st.lists(client_frames, max_size=6))
def test_no_frame_of_a_client_breaks_the_machine(frames: list[tuple[int, Any]]) -> None:
    """All kinds with any body: handled or answered with ERROR; a job submitted afterwards ends."""
    desk = _desk()
    for number, (kind, body) in enumerate(frames):
        desk.do(e.ClientSent(1, kind, number, body))
        if number % 2:
            desk.sync()
    _still_works(desk)


@settings(deadline=None)
@given(st.lists(peer_frames, max_size=6))
def test_no_frame_of_a_member_breaks_the_machine(frames: list[tuple[int, Any]]) -> None:
    """All kinds with any body: handled or the sender dropped; a job submitted afterwards ends."""
    desk = _desk()
    for number, (kind, body) in enumerate(frames):
        desk.do(e.PeerSent("p", kind, body))
        if number % 2:
            desk.sync()
            desk.wait(1.0)
    desk.do(e.PeerDown("p", reset=True))
    _still_works(desk)


def test_an_unknown_frame_of_a_client_is_answered_with_its_id() -> None:
    """A typed refusal with what to do next."""
    desk = _desk()
    out = desk.do(e.ClientSent(1, 99, 17, []))

    assert [(one.kind, one.id, one.body["code"]) for one in out if isinstance(one, e.Reply)] == [
        (m.ERROR, 17, "version-mismatch")
    ]


def test_a_malformed_frame_of_a_member_costs_it_the_connection() -> None:
    """The shell is asked to end it and to say why; nothing else happens."""
    desk = _desk()
    out = desk.do(e.PeerSent("p", m.P_CLAIM, [1, 2]))

    assert [(one.peer, "type 100" in one.why) for one in out if isinstance(one, e.Drop)] == [("p", True)]


def test_results_of_tasks_that_nobody_submitted_count_for_nothing() -> None:
    """A member cannot end a job by claiming results beyond its tasks."""
    desk = _desk()
    desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [1, 1], 1, [[0, 2**40, 1, b""]]]]))

    assert not desk.machine.keeping.jobs[JOB].done


# ---- nested as deep as msgpack reads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (m.P_GOSSIP, [[["q", 7, ALIVE, "p", shown(Card(7, 0, b"lifelife", False, (), {"x": _deep(1000)}, ()))]]]),  # noqa: FBT003
        (m.P_ASK, [[1, 1], "show", {"target": _deep(1000)}]),
        (m.P_ERROR, [[1, 1], {"code": _deep(1000)}]),
        (m.P_ANSWER, [[1, 1], {"node": {"name": _deep(1000)}}]),
        (m.P_RESULTS, [[JOB, [7, 1], 1, [[0, 1, 2, pack({"text": "", "qualname": _deep()})]]]]),
        (
            m.P_GRANT,
            [
                [7, 1], b"k" * 16, "name", [[0, 1, 1]], [[CODE, UNION]],
                [[0, 1, encode_batch([CODE], [{"retries": _deep()}], [(1, 0, 0, 0, [b"x"])])]],
            ],
        ),
    ],
)  # fmt: skip
def test_what_is_nested_too_deep_costs_its_sender_the_connection(kind: int, body: Any) -> None:
    """Compared, sorted or printed, it would end the node; in gossip it would end every node of the grid."""
    desk = _desk()
    out = desk.do(e.PeerSent("p", kind, body), e.PeerSent("p", kind, body))
    desk.wait(3.0)
    desk.answer("status")
    _still_works(desk)

    assert "p" in [one.peer for one in out if isinstance(one, e.Drop)]


def test_a_request_nested_too_deep_is_answered_with_an_error() -> None:
    """A program of this machine gets a typed refusal, and the node goes on."""
    desk = _desk()
    (body,) = replies(desk.say(m.REQUEST, ["show", {"target": _deep(1000)}], id_=3), m.ERROR)

    assert body["code"] == "version-mismatch"


def test_inputs_that_are_no_bytes_are_refused() -> None:
    """They would be measured when a member asks for them."""
    desk = _desk()
    wrong = encode_batch([CODE], [{}], [(2, 0, 0, 0, [1, None])])
    out = desk.say(m.INPUT, [JOB, 4, 6, wrong])
    desk.do(e.PeerSent("p", m.P_WANT, [[7, 1], 2, 1.0, 1000.0]))

    assert [body["code"] for body in replies(out, m.ERROR)] == ["version-mismatch"]


def test_counts_of_others_are_numbers_that_can_be_told() -> None:
    """Members that say how much they cancelled, each as much as a frame can hold: the sum is packed, too."""
    desk = _desk()
    desk.say(m.REQUEST, ["cancel", {"target": "all"}], id_=9)
    about = {"name": "x", "owner": "p", "state": "running", "submitted": 1.0}
    rows = [{"id": one, "hex": one * 32, **about} for one in "ab"]
    for answer in ({"jobs": rows}, {"cancelled": 2**62 - 1}, {"cancelled": 2**62 - 1}):
        (rid, *_) = sends(desk.all, m.P_ASK)[-1]
        desk.do(e.PeerSent("p", m.P_ANSWER, [rid, answer]))
    out = new = desk.sync()
    while lots := sends(new, m.P_ROWS):  # what was cancelled here is said once another keeper has it as well
        new = desk.do(e.PeerSent("p", m.P_SYNCED, [[number for number, *_ in lots], []]))
        out = [*out, *new]
    (told,) = [one.body for one in out if isinstance(one, e.Reply) and one.id == 9]

    assert unpack(pack(told)) == {"cancelled": 2**62}


# ---- more than its share, and what its role forbids ------------------------------------------------------------------


def test_more_requests_than_are_answered_at_once_are_refused_and_none_is_forgotten() -> None:
    """Whoever asks again and again for logs, which are read from disk, gets all answers that were begun."""
    desk = _desk()
    (run,) = runs(desk.all)[:1]
    log = [(run.segments[0].lo, b"a line")]
    desk.do(e.WorkerDone(run.worker, run.run, [], False, [], 0.1, log))  # noqa: FBT003
    out = [
        one
        for number in range(ASKERS_MAX + 10)
        for one in desk.do(e.PeerSent("p", m.P_ASK, [[7, number], "logs", {"target": "all"}]))
    ]
    fetches = [one for one in out if isinstance(one, e.Fetch)]
    read: list[e.Effect] = []
    while len(sends(read, m.P_ANSWER)) < ASKERS_MAX and fetches:
        told = [effect for one in fetches for effect in desk.do(e.Fetched(one.token, []))]
        told += desk.wait(2 * PATIENCE_S)  # the other keeper says nothing
        read += told
        fetches = [one for one in told if isinstance(one, e.Fetch)]
    answers = sends(read, m.P_ANSWER)

    assert sorted(body[0][1] for body in answers) == list(range(ASKERS_MAX))
    assert [body[1]["code"] for body in sends(out, m.P_ERROR)] == ["quota-exceeded"] * 10


@pytest.mark.parametrize("roles", [WORK, OBSERVE])
def test_who_may_not_submit_cannot_keep_a_node_from_asking_others(roles: int) -> None:
    """It says that it has work, or that a large grant is under way: nothing is asked of it, or waited for."""
    desk = Desk(slots=2)
    desk.ready()
    desk.do(e.PeerUp("p", {"name": "p"}, None, roles), e.PeerUp("q", {"name": "q"}, None, ALL_ROLES))
    out = desk.do(e.PeerSent("p", m.P_WORK, []), e.PeerSent("p", m.P_COMING, [[7, 1]]), e.PeerSent("q", m.P_WORK, []))

    assert [one.peer for one in out if isinstance(one, e.Send) and one.kind == m.P_WANT] == ["q"]


def _with_one_task_at_p() -> tuple[Desk, int]:
    """Return a desk without workers whose job of four tasks has one of them at the member p, and which."""
    desk = Desk(slots=0)
    desk.join()
    facts = {"slots": 1, "minor": 11, "resources": {"cpu": 1}}
    desk.do(e.PeerUp("p", {"name": "p", **facts}, None, WORK), e.PeerUp("q", {"name": "q", **facts}, None, WORK))
    desk.submit(4)
    ((_, _, _, ((lo, _, _, _),), _, _),) = sends(desk.do(e.PeerSent("p", m.P_WANT, [[7, 1], 1, 1.0, 0.0])), m.P_GRANT)
    desk.do(e.PeerSent("p", m.P_GRANT_ACK, [[7, 1], 1]))
    return desk, lo


def test_a_claim_covers_only_what_its_member_was_given() -> None:
    """It names a whole job, again and again: another member is given the rest all the same."""
    desk, _ = _with_one_task_at_p()
    given = []
    for seq in range(1, 5):
        desk.do(e.PeerSent("p", m.P_CLAIM, [7, seq, 1.0, [[JOB, [0, 4], [0, 4]]]]))
        for body in sends(desk.do(e.PeerSent("q", m.P_WANT, [[9, seq], 1, 1.0, 0.0])), m.P_GRANT):
            given += [(lo, hi) for lo, hi, _, _ in body[3]]
            desk.do(e.PeerSent("q", m.P_GRANT_ACK, [[9, seq], seq]))
        desk.wait(1.0)

    assert sum(hi - lo for lo, hi in given) == 3
    assert [one.text for one in desk.all if isinstance(one, e.Log)] == ["p (p) claims tasks that it was not given"]


def test_a_result_counts_only_of_whom_was_given_the_task() -> None:
    """A device that may work answers for its own tasks; for those of others it is not believed."""
    desk, mine = _with_one_task_at_p()
    for number, index in enumerate(range(4), 1):
        outcomes, logs = [[index, index + 1, 0, [b"forged"]]], [[index, b"a line"]]
        desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [7, number], 1, outcomes, logs, 0.1]]))
        desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [7, 10 + number], 1, [], logs, 0.1]]))
    desk.sync()
    kept = desk.machine.keeping.jobs[JOB]

    assert list(kept.done) == list(kept.logs) == [(mine, mine + 1)]


def test_nobody_was_busy_for_longer_than_there_was_time() -> None:
    """What a member says of that is charged to whose tasks they were; too much would keep them from their turn."""
    desk, mine = _with_one_task_at_p()
    desk.wait(2.0)
    desk.do(e.PeerSent("p", m.P_RESULTS, [[JOB, [7, 1], 1, [[mine, mine + 1, 0, [b"v"]]], [], 1.7e308]]))
    (owner,) = desk.machine.pool._owners.values()

    assert owner.served_s == pytest.approx(3.0)


def test_a_reason_that_a_member_gives_is_kept_to_a_length() -> None:
    """It is shown, and becomes the message of an exception."""
    desk, mine = _with_one_task_at_p()
    desk.do(e.PeerSent("p", m.P_RETURN, [JOB, [mine, mine + 1], "x" * 1_000_000]))
    (lane,) = desk.machine.pool.works[JOB].lanes.values()

    assert len(lane.unfit["p"]) == 1000


def test_logs_are_as_many_as_an_answer_takes() -> None:
    """Ten thousand tasks that print much would make a frame for which its receiver ends the connection."""
    text = b"x" * (1 << 20)
    logs = [[index, text] for index in range(100)]

    assert [index for index, _ in last_logs(logs)] == list(range(36, 100))
    assert last_logs([[3, b"b"], [1, b"a"]]) == [[1, b"a"], [3, b"b"]]

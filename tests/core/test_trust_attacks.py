"""Who belongs to a grid, attacked: every row of the model of DESIGN §3 (56 attacks and honest cases) against our code.

The world has a founder F, an admin A made by F, plain members M and J let in by F with one voucher, and T, the thief or
the newcomer. Attackers sign what they like (`signed`); honest nodes use the judge. An attack returns whether the
attacker, or the honest member of which the row speaks, is let in.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import (
    ADMIN,
    ALL_ROLES,
    LINKS_MAX,
    OBSERVE,
    SUBMIT,
    WORK,
    Reason,
    Refused,
    found,
    join,
    key_id,
    may,
    public_of,
    read_chain,
    sign_link,
)
from p2pgrid.core.invite import Membership, export_admin, recover_admin
from p2pgrid.core.revocation import Revocation, Revocations, vouchers_of
from p2pgrid.core.trust import Judge, judging_time
from p2pgrid.core.wire import pack, unpack

USER, DAY, YEAR, T0 = SUBMIT | WORK, 86_400, 31_557_600, 1_800_000_000
Y1970, Y2040 = 0, 2_208_988_800
LATE, AFTER = T0 + 30 * DAY, T0 + 20 * DAY
"""Long past `join_until`; when things are revoked."""

Member = tuple[Ed25519PrivateKey, bytes]
By = str | Member


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def signed(signer: Ed25519PrivateKey, grid: bytes, chain: bytes, *fields: object) -> bytes:
    """Hang a link below a chain, no rule looked at: the attacker's tool."""
    return pack([*unpack(chain), sign_link(signer, grid, *fields)])


class World:
    def __init__(self) -> None:
        self.root = key("grid")
        self.F, self.A, self.M, self.J, self.T = (key(name) for name in "FAMJT")
        self.grid = public_of(self.root)
        self.judge = Judge(self.grid)
        self.revoked = Revocations(self.judge)
        self.chains = {"F": found(self.root, public_of(self.F), T0)}
        self.chains["A"] = self.node("F", self.A)
        self.v = self.invite("F", until=T0 + 7 * DAY)
        self.chains["M"], self.chains["J"] = (self.admit("F", self.join(node=node)) for node in (self.M, self.J))
        self.known = list(self.chains.values())

    def who(self, by: By) -> Member:
        return (getattr(self, by), self.chains[by]) if isinstance(by, str) else by

    def node(
        self, by: By, node: Ed25519PrivateKey | None = None, roles: int = ALL_ROLES, at: int = T0, until: int = 0
    ) -> bytes:
        signer, chain = self.who(by)
        return signed(signer, self.grid, chain, "n", public_of(node or self.T), roles, at, until, b"")

    def invite(self, by: By, roles: int = USER, at: int = T0, until: int = LATE) -> Member:
        signer, chain = self.who(by)
        voucher = key(f"voucher {by!r} {at}")
        return voucher, signed(signer, self.grid, chain, "v", public_of(voucher), roles, at, 0, until)

    def join(self, voucher: Member | None = None, node: Ed25519PrivateKey | None = None) -> bytes:
        own, chain = voucher or self.v
        return join(own, self.grid, chain, public_of(node or self.T))

    def admit(self, by: By, chain: bytes, at: int = T0) -> bytes:
        """An admin replaces a joiner's chain, as it sees things; whoever is none leaves it as it is."""
        signer, own = self.who(by)
        if not self.judge.check(own, public_of(signer), at) & ADMIN:
            return chain
        return self.judge.replace(signer, own, chain, at)

    def says(
        self,
        by: By,
        target: Ed25519PrivateKey,
        known: Sequence[bytes] = (),
        heard: Revocations | None = None,
        *,
        with_admitted: bool = False,
    ) -> Revocation:
        signer, chain = self.who(by)
        heard = heard or Revocations(self.judge)
        return heard.revoke(
            signer, [chain], public_of(target), AFTER, known or self.known, with_admitted=with_admitted
        )  # fmt: skip

    def gone(
        self, by: By, target: Ed25519PrivateKey, known: Sequence[bytes] = (), *, with_admitted: bool = False
    ) -> bool:
        return self.revoked.add(self.says(by, target, known, with_admitted=with_admitted))

    def into(
        self,
        chain: bytes,
        node: Ed25519PrivateKey | None = None,
        now: float = LATE,
        revoked: Revocations | None = None,
    ) -> bool:
        try:
            return bool(self.judge.check(chain, public_of(node or self.T), now, revoked or self.revoked))
        except Refused:
            return False

    def may(self, chain: bytes, act: str, node: Ed25519PrivateKey | None = None) -> bool:
        return may(self.judge.check(chain, public_of(node or self.T), T0, self.revoked), act)

    def clock(
        self,
        chain: bytes,
        own: int,
        offsets: Sequence[float] = (),
        *,
        dialler: bool = False,
        node: Ed25519PrivateKey | None = None,
    ) -> bool:
        """The judging node's own chain was signed on day 10."""
        return self.into(chain, node, judging_time(own, offsets, T0 + 10 * DAY, dialler=dialler))


def with_member_helping(w: World) -> bool:
    return w.into(w.admit("M", w.join()))


def member_helped_and_was_revoked(w: World) -> bool:
    helped = w.admit("M", w.join())

    return w.gone("F", w.M) and w.into(helped)


def backdated_by_a_revoked_admin(w: World) -> bool:
    return w.gone("F", w.A) and w.into(w.admit("A", w.join(w.invite("A"))))


def voucher_of_a_revoked_inviter(w: World) -> bool:
    return w.gone("F", w.A) and w.into(w.join(w.invite("A")), now=T0 + 21 * DAY)


def hundred_joiners(w: World) -> bool:
    return all(w.into(w.join(node=key(f"j{i}")), key(f"j{i}"), T0 + DAY) for i in range(100))


def invite_undone(w: World) -> bool:
    assert w.gone("A", w.v[0], with_admitted=True)

    return w.into(w.join(), now=T0) or w.into(w.chains["J"], w.J)


def invite_closed(w: World) -> bool:
    return w.gone("A", w.v[0]) and w.into(w.chains["M"], w.M) and w.into(w.chains["J"], w.J)


def joiner_signs(w: World) -> bool:
    return w.into(w.node((w.J, w.join(w.invite("F", ALL_ROLES), w.J))), now=T0)


def joiner_revokes(w: World) -> bool:
    with pytest.raises(Refused) as caught:
        w.gone((w.T, w.join(w.invite("F", ALL_ROLES))), w.J)

    assert caught.value.reason is Reason.PROVISIONAL
    return not w.into(w.chains["J"], w.J)


def rejoins(w: World) -> bool:
    (voucher,) = vouchers_of(w.known, public_of(w.J))
    assert w.gone("F", w.J)
    assert w.revoked.add(Revocations(w.judge).revoke(w.F, [w.chains["F"]], voucher, AFTER, w.known))
    assert w.into(w.chains["M"], w.M)

    return w.into(w.join(), now=T0 + DAY)


def founder_gone(w: World) -> bool:
    return w.gone("A", w.F) and all(w.into(w.chains[name], getattr(w, name)) for name in "AMJ")


def grid_key_is_not_kept(w: World) -> bool:
    """Whatever key was found on the disk, it is not the grid's."""
    return w.gone("A", w.F) and w.into(found(key("gone"), public_of(w.T), T0))


def founder_mints(w: World) -> bool:
    return w.gone("A", w.F) and w.into(w.node("F"))


def laundered(w: World) -> bool:
    chain = w.admit("F", w.join(w.invite("A")))

    return w.gone("F", w.A, with_admitted=True) and w.into(chain)


def lists_itself(w: World) -> bool:
    minted = w.node("A")
    w.gone((w.T, minted), w.A, known=[minted])
    w.gone("F", w.A)

    return w.into(minted)


def cuts_itself(w: World) -> bool:
    with pytest.raises(Refused) as caught:
        w.gone("A", w.F, with_admitted=True)

    assert caught.value.reason is Reason.CUTS_SENDER
    return not w.into(w.chains["A"], w.A)


def widened(w: World) -> bool:
    """A joiner link holds no roles; one with roles is another shape."""
    voucher, above = w.v
    chain = signed(voucher, w.grid, above, "n", public_of(w.J), ALL_ROLES, T0, 0, b"")
    more = signed(voucher, w.grid, above, "j", public_of(w.J), ALL_ROLES)
    plain = w.join(node=w.J)

    return any(w.into(one, w.J, T0) for one in (chain, more)) or w.may(plain, "revoke", w.J)


def other_roles_granted(w: World) -> bool:
    return w.into(w.node((w.J, w.node("F", w.J, ADMIN)), roles=WORK), now=T0)


def loop(w: World) -> bool:
    return w.into(w.node((w.F, w.node("A", w.F))))


def nine_links(w: World) -> bool:
    by: Member = (w.F, w.chains["F"])
    for i in range(LINKS_MAX):
        by = (key(f"d{i}"), w.node(by, key(f"d{i}")))
    assert len(unpack(by[1])) == 9

    return w.into(by[1], by[0])


def twentieth(w: World) -> bool:
    """The shallowest admin alive signs, so chains do not grow with the grid."""
    chain = b""
    for i in range(20):
        chain = w.admit("F", w.join(node=key(f"w{i}")))
    assert len(read_chain(chain)) == 2

    return w.into(chain, key("w19"))


def admins_by_default(w: World) -> bool:
    return w.into(w.admit((w.J, w.node("F", w.J, ALL_ROLES)), w.join()))


def ended_admin_signs(w: World) -> bool:
    return w.into(w.node((w.M, w.node("F", w.M, until=T0 + DAY)), roles=USER))


def two_grids(w: World) -> bool:
    other = found(key("grid2"), public_of(w.A), T0)
    grid, voucher = public_of(key("grid2")), key("g2")
    theirs = unpack(signed(w.A, grid, other, "v", public_of(voucher), USER, T0, 0, LATE))
    mixed = pack([*unpack(w.chains["A"]), theirs[-1]])

    return w.into(w.join((voucher, mixed)), now=T0)


def other_grid(w: World) -> bool:
    other = found(key("grid2"), public_of(w.F), T0)
    chain = signed(w.F, public_of(key("grid2")), other, "n", public_of(w.J), USER, T0, 0, b"")

    return w.into(chain, w.J)


def in_1970(w: World) -> bool:
    return w.clock(w.chains["M"], Y1970, dialler=True, node=w.M) and w.into(w.join(), now=T0 + DAY)


def one_at_2040(w: World) -> bool:
    return w.clock(w.join(), Y2040, [T0 + DAY - Y2040] * 3)


def made_at_2040(w: World) -> bool:
    return w.into(w.join(w.invite("F", at=Y2040, until=Y2040 + 7 * DAY)), now=T0 + YEAR)


def not_heard(w: World) -> bool:
    return w.gone("F", w.J) and w.into(w.chains["J"], w.J, revoked=Revocations(w.judge))


def synced(w: World) -> bool:
    stale = Revocations(w.judge)
    assert stale.add(w.says("F", w.J))

    return w.into(w.chains["J"], w.J, revoked=stale)


def named_by_a_revoked_admin(w: World) -> bool:
    record = w.says("A", w.J)
    assert w.gone("F", w.A)
    assert not w.revoked.add(record)

    return w.into(w.chains["J"], w.J)


def each_other(w: World) -> bool:
    assert w.gone("F", w.A)
    w.revoked.add(w.says("A", w.F))

    return w.into(w.chains["F"], w.F) and not w.into(w.chains["A"], w.A)


def any_order(w: World) -> bool:
    """Anti-entropy offers everything again; N is minted by the thief of A and known to nobody."""
    B, N = key("B"), key("N")  # noqa: N806 - the model's names
    b, n = w.node("F", B), w.node("A", N)
    first = w.says("A", w.M)
    heard = Revocations(w.judge, [first])
    records = [
        first,
        w.says("F", w.A, [*w.known, b], heard),
        w.says((B, b), w.A),
        w.says("A", w.J),
        w.says((N, n), w.J),
    ]
    members = [(w.chains["A"], w.A), (w.chains["M"], w.M), (w.chains["J"], w.J), (b, B), (n, N)]
    seen = set()
    for order in itertools.permutations(records):
        revoked = Revocations(w.judge, order * 2)
        seen.add(tuple(w.into(chain, node, LATE, revoked) for chain, node in members))

    assert seen == {(False, False, True, True, False)}
    return True


def both_halves(w: World) -> bool:
    """Each side's admin knows members whom the other has not met."""
    B, P, Q = key("B"), key("P"), key("Q")  # noqa: N806 - the model's names
    b, p, q = w.node("F", B), w.node("F", P, USER), w.node("F", Q, USER)
    assert w.gone("A", w.F, [w.chains["A"], b, p])
    assert w.gone((B, b), w.F, [w.chains["A"], b, q])

    return w.into(p, P) and w.into(q, Q)


def promoted_twice(w: World) -> bool:
    chains = [w.judge.promote(getattr(w, by), w.chains[by], public_of(w.J), ALL_ROLES, T0) for by in "FA"]
    assert w.gone("F", w.A)

    return w.judge.best(chains, public_of(w.J), LATE, w.revoked) == chains[0]


def promoted_by_a_thief(w: World) -> bool:
    kept = w.judge.keep([w.chains["J"]], w.node("A", w.J, at=LATE), public_of(w.J), LATE)
    assert w.judge.best(kept, public_of(w.J), LATE) == kept[1]
    assert w.gone("F", w.A)

    return w.judge.best(kept, public_of(w.J), LATE, w.revoked) == w.chains["J"]


def acts(w: World) -> bool:
    observer, submitter = w.node("F", roles=OBSERVE), w.node("F", roles=SUBMIT)
    assert w.may(observer, "read")
    assert w.may(submitter, "submit")

    return (
        w.may(w.chains["M"], "revoke", w.M)
        or any(w.may(observer, act) for act in ("submit", "claim", "result", "invite", "revoke"))
        or any(w.may(submitter, act) for act in ("claim", "result", "invite", "revoke"))
    )


def recovered(w: World) -> bool:
    exported = key("export")
    chain = w.judge.promote(w.F, w.chains["F"], public_of(exported), ALL_ROLES, T0)
    text = export_admin(Membership(w.grid, (), exported, chain), "a phrase", bytes(16))
    assert w.gone("A", w.F, [*w.known, chain])
    back = recover_admin(text, "a phrase")

    return w.into(w.judge.promote(back.key, back.chain, public_of(w.T), ALL_ROLES, LATE, w.revoked))


def wrong_phrase(w: World) -> bool:
    text = export_admin(Membership(w.grid, (), w.A, w.chains["A"]), "right", bytes(16))
    with pytest.raises(Refused) as caught:
        recover_admin(text, "wrong")

    return caught.value.reason is not Reason.PASSPHRASE


IN, OUT = True, False
ROWS: list[tuple[str, bool, Callable[[World], bool]]] = [
    ("A voucher used late opens nothing, whatever date the joiner wishes", OUT, lambda w: w.into(w.join())),
    ("… nor does it when a plain member helps", OUT, with_member_helping),
    ("… nor when that member is revoked later", OUT, member_helped_and_was_revoked),
    ("An admin may sign anyone, and so may one that colludes", IN, lambda w: w.into(w.admit("A", w.join()))),
    ("… but once revoked it cannot backdate voucher and link", OUT, backdated_by_a_revoked_admin),
    ("The chain of a member shown by another key is refused", OUT, lambda w: w.into(w.chains["J"])),
    ("A chain shown by the joiner that it does not name is refused", OUT, lambda w: w.into(w.join(node=w.J), now=T0)),
    ("A voucher whose inviter was revoked opens nothing, in time too", OUT, voucher_of_a_revoked_inviter),
    ("One voucher lets in a fleet of a hundred", IN, hundred_joiners),
    ("Revoking an invite with those it admitted refuses the next one and them", OUT, invite_undone),
    ("Revoking an invite alone closes it; who is in stays", IN, invite_closed),
    ("The key of the voucher itself is no node", OUT, lambda w: w.into(w.v[1], w.v[0])),
    ("A joiner that no admin has signed yet signs nobody", OUT, joiner_signs),
    ("… and revokes nobody", OUT, joiner_revokes),
    ("A stolen node key works until it is revoked", IN, lambda w: w.into(w.chains["J"], w.J)),
    ("… and not after", OUT, lambda w: w.gone("A", w.J) and w.into(w.chains["J"], w.J)),
    ("… and its machine does not rejoin by the invite found on it", OUT, rejoins),
    ("The founder is revoked, and its members remain", IN, founder_gone),
    ("The revoked founder's disk holds no grid key that could mint an admin", OUT, grid_key_is_not_kept),
    ("The revoked founder's node key mints nobody, backdated or not", OUT, founder_mints),
    ("A thief's guest that others signed again goes with the thief", OUT, laundered),
    ("A thief's guest that revokes the thief first, listing itself, goes too", OUT, lists_itself),
    ("Revoking the founder with all it admitted is refused to whom it admitted", OUT, cuts_itself),
    ("A plain member signs nobody", OUT, lambda w: w.into(w.node("M", roles=USER), now=T0)),
    ("A joiner cannot write itself admin", OUT, widened),
    ("An admin that does not work lets in a worker", IN, other_roles_granted),
    ("A chain that goes through the founder twice is harmless", IN, loop),
    ("Nine links are too many", OUT, nine_links),
    ("The twentieth joiner, each met by the one before it, is in", IN, twentieth),
    ("Let in by a plain member, no admin until join_until: out again", OUT, lambda w: w.into(w.admit("M", w.join()))),
    ("… which does not happen where invites make admins", IN, admins_by_default),
    ("An admin whose membership has ended signs nobody, backdated or not", OUT, ended_admin_signs),
    ("Six years without an admin, and a member is still in", IN, lambda w: w.into(w.chains["J"], w.J, T0 + 6 * YEAR)),
    ("An admin of two grids: the voucher of one does not open the other", OUT, two_grids),
    ("The certificate of another grid for the same node key is refused", OUT, other_grid),
    ("A joiner whose clock says 1970 dials and is let in", IN, in_1970),
    ("A lonely listener in 1970 refuses an expired voucher", OUT, lambda w: w.clock(w.join(), Y1970)),
    ("A dialler without grid time refuses it, too", OUT, lambda w: w.clock(w.join(), Y1970, dialler=True)),
    ("All clocks at 2040, and members know each other", IN,
     lambda w: w.clock(w.chains["J"], Y2040, [0, 3, -2], node=w.J)),
    ("One clock at 2040 among right ones lets a fresh voucher in", IN, one_at_2040),
    ("A voucher made at 2040 works for years (known: revoke it)", IN, made_at_2040),
    ("Who has not heard of the revocation lets the member in", IN, not_heard),
    ("… until the first sync", OUT, synced),
    ("Who was named by an admin that had been revoked stays", IN, named_by_a_revoked_admin),
    ("Of a thief and an admin who name each other, the first heard wins", IN, each_other),
    ("Five revocations in all orders: all nodes agree", IN, any_order),
    ("Both halves of a partition revoke the founder: their lists unite", IN, both_halves),
    ("Promoted by two admins of whom one is revoked: still in", IN, promoted_twice),
    ("A thief's promotion does not cost a member its first chain", IN, promoted_by_a_thief),
    ("Nobody does what its roles do not cover", OUT, acts),
    ("A task on an admin's node can read its key and mint (said in SECURITY.md)", IN, lambda w: w.into(w.node("A"))),
    ("… until that node is revoked", OUT, lambda w: w.gone("F", w.A) and w.into(w.node("A"))),
    ("A leaked invite works within join_until", IN, lambda w: w.into(w.join(), now=T0)),
    ("… and not after join_until", OUT, lambda w: w.into(w.join())),
    ("The recovery file of a founder revoked since still makes admins", IN, recovered),
    ("A recovery file does not open with a wrong passphrase", OUT, wrong_phrase),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "attack"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_attack(expected: bool, attack: Callable[[World], bool]) -> None:  # noqa: FBT001 - a column
    """Our rules admit whom the model admits and refuse whom it refuses; the id of the test is the sentence."""
    assert attack(World()) is expected


def test_no_row_of_the_model_is_missing() -> None:
    """56 rows, each with a sentence of its own."""
    assert len(ROWS) == len({sentence for sentence, *_ in ROWS}) == 56


def test_a_node_link_remembers_inviter_and_voucher() -> None:
    """In the layout of the model: the first halves of both keys, the voucher's roles."""
    w = World()
    link = read_chain(w.chains["J"])[-1]

    assert (link.inviter, link.voucher) == (key_id(public_of(w.F)), key_id(public_of(w.v[0])))
    assert unpack(link.body) == ["n", public_of(w.J), USER, T0, 0, link.inviter + link.voucher]

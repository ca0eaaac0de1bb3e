"""Keys, PeerIds, and the nearest of many."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.utils import create_key_from_binary, xor_distance
from libp2p.peer.id import ID

from p2pgrid.dht.keys import Nearest, is_peer_id, key_of, name_near, peer_id_of, public_of, shared_bits

names = st.binary(min_size=1, max_size=8)


def test_peer_ids_keys_and_distances_are_those_of_libp2p() -> None:
    """An id made by py-libp2p is ours, byte for byte, and lives at the same key."""
    public = create_new_key_pair(bytes(32)).public_key
    theirs = ID.from_pubkey(public).to_bytes()

    assert peer_id_of(public.to_bytes()) == theirs
    assert public_of(theirs) == public.to_bytes()
    assert is_peer_id(theirs)
    assert key_of(theirs).to_bytes(32, "big") == create_key_from_binary(theirs)
    assert key_of(theirs) ^ key_of(b"a") == xor_distance(create_key_from_binary(theirs), create_key_from_binary(b"a"))


def test_what_is_no_peer_id_is_told() -> None:
    """Ids are identity or sha256 multihashes of at least 32 bytes; a PeerId of another key has no Ed25519 key."""
    rsa = b"\x12\x20" + bytes(32)

    assert is_peer_id(rsa)
    assert public_of(rsa) is None
    for wrong in (b"", b"x", b"\x12\x20" + bytes(31), b"\x00\x24" + bytes(35), b"\x00\xff" + bytes(255)):
        assert not is_peer_id(wrong)


@given(st.sets(names, max_size=60), names, st.integers(1, 70))
def test_nearest_finds_what_sorting_all_would(known: set[bytes], target: bytes, n: int) -> None:
    """Halving towards the target loses nobody."""
    expected = sorted(known, key=lambda name: key_of(name) ^ key_of(target))[:n]

    assert Nearest(known).closest(key_of(target), n) == expected


@given(st.lists(st.tuples(st.booleans(), names), max_size=60), names)
def test_nearest_follows_what_is_added_and_removed(changes: list[tuple[bool, bytes]], target: bytes) -> None:
    """Adding twice is once, removing what is not there is nothing."""
    nearest, expected = Nearest(), set[bytes]()
    for add, name in changes:
        (nearest.add if add else nearest.remove)(name)
        (expected.add if add else expected.discard)(name)

    assert len(nearest) == len(expected)
    assert set(nearest.closest(key_of(target), 100)) == expected


def test_a_name_near_us_shares_the_prefix_that_was_wanted() -> None:
    """Every prefix up to nine bits is hit exactly; what takes too long ends all the same."""
    me = key_of(b"me")
    shared = [shared_bits(key_of(name_near(me, wanted, random.Random(wanted))), me) for wanted in range(10)]

    assert shared == list(range(10))
    assert is_peer_id(name_near(me, 3, random.Random(1)))
    assert is_peer_id(name_near(me, 200, random.Random(1)))

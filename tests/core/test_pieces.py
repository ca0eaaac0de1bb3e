"""Pieces: every one is verified by itself, from the id alone."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core import pieces
from p2pgrid.core.errors import PeerError
from p2pgrid.core.pieces import PIECE_BYTES, Hashing, Manifest, is_id, manifest_of, read_manifest
from p2pgrid.core.wire import pack


@pytest.mark.parametrize("size", [1, 5, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_each_piece_is_verified_alone(size: int) -> None:
    """From the id: the manifest, and from it each piece in any order; a flipped bit fails that piece."""
    data = random.Random(size).randbytes(size)
    manifest = read_manifest((m := manifest_of(data)).id, m.packed())

    assert manifest.size == size
    assert manifest.count == -(-size // PIECE_BYTES)
    for piece in reversed(range(manifest.count)):
        lo, hi = manifest.span(piece)
        part = bytearray(data[lo:hi])
        assert manifest.fits(piece, bytes(part))
        assert not manifest.fits(piece, bytes(part[:-1]))
        part[-1] ^= 1
        assert not manifest.fits(piece, bytes(part))
        assert not manifest.fits(manifest.count, data[lo:hi])
        assert not manifest.fits(-1, data[lo:hi])


@given(st.lists(st.integers(0, 40), max_size=12))
@settings(max_examples=60, deadline=None)
def test_parts_of_any_length_give_the_same_id(lengths: list[int]) -> None:
    """Hashing while it is written is hashing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", 16)
        data = random.Random(1).randbytes(sum(lengths))
        hashing, at = Hashing(), 0
        for length in lengths:
            hashing.update(data[at : at + length])
            at += length

        assert hashing.manifest() == manifest_of(data)


def test_a_manifest_of_another_object_is_refused() -> None:
    """A liar cannot make up pieces."""
    one, other = manifest_of(b"one"), manifest_of(b"other")
    with pytest.raises(PeerError):
        read_manifest(one.id, other.packed())


@pytest.mark.parametrize(
    "value",
    [
        None, [], [3, PIECE_BYTES], [0, PIECE_BYTES, b""], [3, 1024, bytes(32)], [3, PIECE_BYTES, bytes(31)],
        [3, PIECE_BYTES, bytes(64)], [True, PIECE_BYTES, bytes(32)], [3, PIECE_BYTES, bytes(32), 1],
        [pieces.OBJECT_BYTES_MAX + 1, PIECE_BYTES, bytes(32)], [-1, PIECE_BYTES, b""], ["3", PIECE_BYTES, bytes(32)],
    ],
)  # fmt: skip
def test_malformed_manifests(value: object) -> None:
    """Even if its hash is what the id says."""
    packed = pack(value)
    with pytest.raises(PeerError):
        read_manifest(b"\x01" + blake3(packed).digest(), packed)


def test_a_manifest_has_one_form() -> None:
    """Equal objects have equal ids: a number packed in another way is refused."""
    packed = manifest_of(b"abc").packed()
    other = packed.replace(b"\x93\x03", b"\x93\xcc\x03")
    assert other != packed
    with pytest.raises(PeerError):
        read_manifest(b"\x01" + blake3(other).digest(), other)


def test_ids() -> None:
    """An id says how it was made."""
    id_ = Manifest(1, bytes(32)).id
    assert is_id(id_)
    assert not is_id(id_[1:])
    assert not is_id(b"\x02" + id_[1:])
    assert not is_id("text")

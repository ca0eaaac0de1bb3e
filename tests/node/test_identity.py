"""Who a node is: its key, its PeerId and the grid of one it founds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.core.chains import ALL_ROLES
from p2pgrid.core.errors import GridError
from p2pgrid.core.ids import grid_name, node_name
from p2pgrid.core.trust import Judge
from p2pgrid.core.wire import unpack
from p2pgrid.node.identity import (
    GRID_FILE,
    KEY_FILE,
    NAME_FILE,
    base58,
    open_identity,
    peer_id,
    read_way,
    write_way,
)

WALL_S = 1_800_000_000.5


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    """The second start finds what the first one made."""
    first = open_identity(tmp_path, None, WALL_S)
    second = open_identity(tmp_path, None, WALL_S + 1)

    assert (first.founded, second.founded) == (True, False)
    assert (first.id, first.grid, first.chains) == (second.id, second.grid, second.chains)
    assert (first.name, first.grid_name) == (node_name(first.public), grid_name(first.grid))


def test_a_given_name_is_taken(tmp_path: Path) -> None:
    """`--name` replaces the name made from the key."""
    identity = open_identity(tmp_path, "otter", WALL_S)

    assert identity.name == "otter"


def test_a_name_outlives_the_start_it_was_given_at(tmp_path: Path) -> None:
    """Whoever follows `p2pgrid node --dir DIR continues its jobs` finds the node under the name it had."""
    open_identity(tmp_path, "otter", WALL_S)

    assert open_identity(tmp_path, None, WALL_S).name == "otter"
    assert open_identity(tmp_path, "wren", WALL_S).name == "wren"
    assert open_identity(tmp_path, None, WALL_S).name == "wren"


@pytest.mark.parametrize("kept", [b"", b"\xff", b"a name\n", b"../x\n", b"x" * 64])
def test_a_name_that_cannot_be_one_is_as_none(tmp_path: Path, kept: bytes) -> None:
    """The file is a person's to edit; it costs no node its start."""
    (tmp_path / NAME_FILE).write_bytes(kept)
    identity = open_identity(tmp_path, None, WALL_S)

    assert identity.name == node_name(identity.public)


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    """Mode 0600, and nothing else is left behind."""
    open_identity(tmp_path, None, WALL_S)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}

    assert modes == {KEY_FILE: 0o600, GRID_FILE: 0o600}


def test_the_grid_key_signs_the_node_as_admin_and_is_thrown_away(tmp_path: Path) -> None:
    """One node link with all roles and no end; no file holds another private key than the node's."""
    identity = open_identity(tmp_path, None, WALL_S)
    ((body, signature),) = unpack(identity.chains[0])
    kept = json.loads((tmp_path / GRID_FILE).read_text())

    assert unpack(body) == ["n", identity.public, ALL_ROLES, int(WALL_S), 0, b""]
    assert len(signature) == 64
    assert kept == {"v": 1, "grid": identity.grid.hex(), "chains": [identity.chains[0].hex()]}
    assert Judge(identity.grid).check(identity.chains[0], identity.public, WALL_S) == ALL_ROLES


def test_a_chain_of_another_grid_is_refused(tmp_path: Path) -> None:
    """The grid's key is in every signature: the file must hold what belongs together."""
    open_identity(tmp_path, None, WALL_S)
    path = tmp_path / GRID_FILE
    kept = json.loads(path.read_text())
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    path.write_text(json.dumps({**kept, "grid": stranger.hex()}))
    with pytest.raises(GridError, match="of another grid"):
        open_identity(tmp_path, None, WALL_S)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The message says which command mends it."""
    open_identity(tmp_path, None, WALL_S)
    path = tmp_path / KEY_FILE
    path.chmod(0o644)
    with pytest.raises(GridError) as caught:
        open_identity(tmp_path, None, WALL_S)

    assert caught.value.exit_code == 2
    assert f"chmod 600 {path}" in caught.value.next


@pytest.mark.parametrize("name", [KEY_FILE, GRID_FILE])
@pytest.mark.parametrize("text", ["", "garbage", '{"grid": 1}', "p2pgrid-ed25519 zz"])
def test_a_malformed_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """One line, a next step, exit code 2; nothing is overwritten."""
    open_identity(tmp_path, None, WALL_S)
    (tmp_path / name).write_text(text)
    with pytest.raises(GridError) as caught:
        open_identity(tmp_path, None, WALL_S)

    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_text() == text


def test_a_membership_of_another_node_is_refused(tmp_path: Path) -> None:
    """A new key beside an old membership is noticed."""
    open_identity(tmp_path, None, WALL_S)
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(GridError, match="admits another node"):
        open_identity(tmp_path, None, WALL_S)


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    """The repr of an identity is fit for a log."""
    identity = open_identity(tmp_path, None, WALL_S)

    assert "PrivateKey" not in repr(identity)
    assert identity.key.private_bytes_raw().hex() not in repr(identity)


def test_base58_of_known_vectors() -> None:
    """Leading zeros are kept, as in Bitcoin."""
    assert base58(b"") == ""
    assert base58(b"\0\0a") == "112g"
    assert base58(b"Hello World!") == "2NEpo7TZRRrLZSi2U"


def test_the_peer_id_is_that_of_libp2p() -> None:
    """Computed by hand, equal to what py-libp2p says."""
    ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
    peer = pytest.importorskip("libp2p.peer.id")
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    expected = str(peer.ID.from_pubkey(ed25519.Ed25519PublicKey.from_bytes(public)))

    assert peer_id(public) == expected


@pytest.mark.parametrize("text", [None, b"", b"[]", b"{}", b'{"grid": 1, "addresses": 2}', b"\xff"])
def test_the_way_to_a_grid_is_read_or_is_none(tmp_path: Path, text: bytes | None) -> None:
    """A hint, of one grid: without it the node starts as well."""
    write_way(tmp_path, b"g" * 32, ["/ip4/10.0.0.1/tcp/9471/p2p/x"])
    assert read_way(tmp_path, b"g" * 32) == ("/ip4/10.0.0.1/tcp/9471/p2p/x",)
    assert read_way(tmp_path, b"h" * 32) == ()

    (tmp_path / "way.json").unlink()
    if text is not None:
        (tmp_path / "way.json").write_bytes(text)

    assert read_way(tmp_path, b"g" * 32) == ()

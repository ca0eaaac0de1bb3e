"""Names of jobs, nodes and grids, and how they are found again."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.ids import Target, grid_name, job_name, match, node_name, parse_target
from p2pgrid.core.words import ADJECTIVES, ANIMALS, NOUNS

ONE = bytes(16)
TWO = bytes.fromhex("a1b2c3d4e5f60718293a4b5c6d7e8f90")


def test_the_words_are_what_ids_count_on() -> None:
    """1,024 adjectives and nouns, no word twice, short and plain."""
    words = [*ADJECTIVES, *NOUNS]

    assert len(ADJECTIVES) == len(NOUNS) == 1024
    assert len(set(words)) == 2048
    assert all(re.fullmatch("[a-z]{3,8}", word) for word in words)
    assert set(ANIMALS) < set(NOUNS)


def test_names_never_change() -> None:
    """The order of the words is part of the format: these names hold for ever."""
    assert job_name(ONE) == "abiding-adder-0"
    assert job_name(TWO) == "tough-tent-9959"
    assert node_name(b"key") == "sincere-vole"
    assert grid_name(b"key") == "bosky-vole"


@given(st.binary(min_size=16, max_size=16))
def test_a_job_is_found_by_its_name_its_hex_and_their_prefixes(job_id: bytes) -> None:
    """Whatever is shown can be typed."""
    jobs: dict[bytes, str | None] = {job_id: None}

    assert match(job_name(job_id), jobs) == [job_id]
    assert match(job_name(job_id).split("-")[0], jobs) == [job_id]
    assert match(job_id.hex().upper(), jobs) == [job_id]
    assert match(job_id.hex()[:4], jobs) == [job_id]


def test_an_id_of_another_length_is_refused() -> None:
    """A name for it could not be found again."""
    with pytest.raises(ValueError, match="16 bytes"):
        job_name(b"short")


def test_a_given_name_is_found_whole_only() -> None:
    """The name a user gave is no prefix of anything."""
    jobs: dict[bytes, str | None] = {ONE: "Julia", TWO: None}

    assert match("Julia", jobs) == [ONE]
    assert match("Jul", jobs) == []


def test_an_exact_name_beats_a_prefix() -> None:
    """`calm-river-4` is not ambiguous because there is a `calm-river-42`."""
    forty_two = (42 * 2**20).to_bytes(16, "big")
    four = (4 * 2**20).to_bytes(16, "big")
    jobs: dict[bytes, str | None] = {forty_two: None, four: None}

    assert match(job_name(four), jobs) == [four]
    assert match(job_name(four)[:-2], jobs) == [forty_two, four]


def test_short_hex_nothing_and_strangers_match_nothing() -> None:
    """Three hex digits are too few to mean a job."""
    jobs: dict[bytes, str | None] = {ONE: None}

    assert match("000", jobs) == []
    assert match("", jobs) == []
    assert match("quick-fox-1", jobs) == []


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("calm-river-42", Target("calm-river-42")),
        ("calm-river-42/17", Target("calm-river-42", 17, 18)),
        ("calm-river-42/3-9", Target("calm-river-42", 3, 10)),
        (" last ", Target("last")),
        ("last/0", Target("last", 0, 1)),
        ("all", Target("all")),
    ],
)
def test_a_target_is_a_job_or_some_of_its_tasks(text: str, target: Target) -> None:
    """`3-9` includes both ends, as people mean it; `hi` is one beyond, as ranges have it."""
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", " ", "/3", "job/", "job/x", "job/-1", "job/9-3", "job/1/2", "job/" + "9" * 19])
def test_what_is_no_target_is_refused(text: str) -> None:
    """A slip is a ValueError, never another task."""
    with pytest.raises(ValueError, match="not a ta"):
        parse_target(text)

"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("7d", 604800), ("1.5h", 5400), ("250ms", 0.25), ("12", 12), (3, 3), (0.5, 0.5)],
)
def test_durations_are_read_as_seconds(text: str | float, seconds: float) -> None:
    """A number has a unit; without one it is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1y", "-1s", "1 2s", "1e3s", "nan", "٣s", float("nan"), -1, 1e18, "9" * 400])
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("512MB", 512_000_000), ("1.5 KiB", 1536), ("10", 10), (4096, 4096), ("1gib", 2**30), ("7B", 7)],
)
def test_sizes_are_read_as_bytes(text: str | int, size: int) -> None:
    """KB counts in thousands, KiB in 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2G", "-1", -1, 0.5, float("inf"), "99999999PiB", "1/2KB"])
def test_what_is_no_size_is_refused(text: str | float) -> None:
    """Nothing is guessed, nothing overflows."""
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90s"), (600, "10m"), (604800, "7d"), (5400, "90m"), (0.25, "0.25s"), (0, "0s")]
)
def test_durations_are_shown_in_one_unit(seconds: float, text: str) -> None:
    """The largest unit that is exact."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (512, "512 B"), (2**31, "2.0 GiB"), (1536, "1.5 KiB")])
def test_sizes_are_shown_in_powers_of_1024(size: int, text: str) -> None:
    """One decimal is enough for people."""
    assert format_size(size) == text


@given(st.integers(0, 10**9))
def test_a_shown_duration_reads_back(seconds: int) -> None:
    """What is printed can be typed."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    """No text makes the parser fail in another way."""
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert 0 <= size < 2**63

"""What the demo shows: lines for pipes, half-blocks for terminals; and the PNG it leaves."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import pytest
from rich.console import Console

from p2pgrid.cli import julia
from p2pgrid.cli.canvas import HUES, Lines, Picture, canvas, hue, tinted
from p2pgrid.cli.png import png


def test_png_holds_the_pixels() -> None:
    """Chunks have their lengths and checksums, rows their filter byte."""
    rgb = bytes(range(2 * 3 * 3))

    data = png(2, 3, rgb)

    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks = {}
    at = 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"][:10] == struct.pack(">IIBB", 2, 3, 8, 2)
    assert zlib.decompress(chunks[b"IDAT"]) == b"".join(b"\0" + rgb[at : at + 6] for at in (0, 6, 12))


def test_rows_are_the_same_wherever_they_start() -> None:
    """A row depends on the scene and its number only, and a scene is not one colour."""
    scene = julia.Scene(64, 48, julia.CONSTANTS[0])

    rows = [julia.row(scene, y) for y in range(48)]

    assert rows == [julia.row(scene, y) for y in reversed(range(48))][::-1]
    assert {len(row) for row in rows} == {64 * 3}
    assert len(set(rows)) > 40


def test_tints_keep_brightness() -> None:
    """Black stays the darkest shade, white becomes the hue itself."""
    assert tinted(b"\0\0\0\xff\xff\xff", hue(0))[3:] == bytes(HUES[0])
    assert tinted(b"\0\0\0", hue(0)) < tinted(b"\x80\x80\x80", hue(0))
    assert hue(len(HUES)) == HUES[0]


def test_lines_come_every_ten_percent() -> None:
    """With the shares of the nodes."""
    out = io.StringIO()
    lines = Lines(20, out, ("otter", "wren"))

    for y in range(20):
        lines.add(y, b"", y % 2)

    said = out.getvalue().splitlines()
    assert len(said) == 10
    assert said[-1].split() == "100 % 20 rows otter 10, wren 10".split()


def test_a_terminal_gets_half_blocks_in_the_colours_of_nodes() -> None:
    """Each row as soon as it is there, beneath what is said."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=40, height=30)
    with Picture(64, 48, console) as picture:
        for y in range(48):
            picture.add(y, b"\xff\xff\xff" * 64, y * 2 // 48)
        picture.say("3  kill")

    text = out.getvalue()
    assert "3  kill" in text
    for colour in HUES[:2]:
        assert "38;2;{};{};{}".format(*colour) in text
    assert "▀" in text


@pytest.mark.parametrize("reason", ["pipe", "no colour", "dumb"])
def test_without_colours_there_are_lines(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Rows could not be told apart by who made them."""
    out = io.StringIO()
    out.isatty = lambda: reason != "pipe"  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb" if reason == "dumb" else "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if reason == "no colour":
        monkeypatch.setenv("NO_COLOR", "1")

    assert isinstance(canvas(64, 48, out, ("otter",)), Lines)


def test_a_terminal_with_colours_gets_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise."""
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    assert isinstance(canvas(64, 48, out, ("otter",)), Picture)

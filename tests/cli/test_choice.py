"""The question of the demo: one key, in time or never, and the terminal is as it was."""

from __future__ import annotations

import io
import os
import pty
import sys
import termios
from collections.abc import Iterator

import pytest

from p2pgrid.cli.choice import can_ask, pressed

LONG_S = 60.0


class Keyboard:
    """A terminal in which a test has typed."""

    def __init__(self) -> None:
        self.typist, self.fd = pty.openpty()

    def fileno(self) -> int:
        return self.fd

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.fd)


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keyboard]:
    """Stand in for stdin."""
    keyboard = Keyboard()
    monkeypatch.setattr(sys, "stdin", keyboard)
    yield keyboard
    os.close(keyboard.typist)
    os.close(keyboard.fd)


@pytest.mark.parametrize("text", [b"f", b"F", b"xyzf"])
def test_the_first_of_the_keys_counts(keyboard: Keyboard, text: bytes) -> None:
    """Others are passed over, capitals are the same keys, and who types ahead is heard, too."""
    before = keyboard.settings()
    os.write(keyboard.typist, text)

    key = pressed("whf", LONG_S)

    assert can_ask()
    assert key == "f"
    assert keyboard.settings() == before


def test_nobody_presses(keyboard: Keyboard) -> None:
    """Then there is no answer, and nothing hangs."""
    before = keyboard.settings()

    key = pressed("whf", 0.05)

    assert key is None
    assert keyboard.settings() == before


def test_nobody_can_be_asked_without_a_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, a text, a closed or missing stdin."""
    closed = io.StringIO()
    closed.close()
    for stdin in (io.StringIO("f"), closed, None):
        monkeypatch.setattr(sys, "stdin", stdin)

        assert not can_ask()

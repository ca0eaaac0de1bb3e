"""One key from the person who watches, or none in time.

Rule: the terminal is as it was when this returns, also by Ctrl-C.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty


def can_ask() -> bool:
    """Say whether somebody may sit at the keyboard."""
    try:
        return os.isatty(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):  # closed, replaced, or none
        return False


def pressed(keys: str, within_s: float) -> str | None:
    """Return the first of these keys that is pressed, case aside; None after that time or at the end of the input.

    One that was pressed before anybody asked counts: who watches for the second time knows what is coming.
    """
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    deadline = time.monotonic() + within_s
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([fd], [], [], left)[0]:
                break
            key = os.read(fd, 1).decode(errors="replace").lower()
            if not key:
                break
            if key in keys:
                return key
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
    return None

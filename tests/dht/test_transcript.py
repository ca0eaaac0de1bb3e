"""docs/kademlia.md shows what the code does."""

from __future__ import annotations

from pathlib import Path

from tests.dht.transcript import transcript

PAGE = Path(__file__).parents[2] / "docs" / "kademlia.md"


def test_the_transcript_in_the_page_is_what_the_code_prints() -> None:
    """Line for line; after a change that is meant: python -m tests.dht.transcript."""
    shown = PAGE.read_text(encoding="utf-8").split("<!-- transcript -->\n```text\n")[1].split("\n```")[0]

    assert shown.splitlines() == transcript()

"""The pages hold together: every error has its section, every link leads somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from p2pgrid.cli.main import VERBS, grid
from p2pgrid.core import errors
from p2pgrid.core.errors import EXIT_CODES, SELF_EVIDENT, GridError
from tests.core.test_errors import TREE

ROOT = Path(__file__).parent.parent.parent
SOURCES = [
    path for room in ("p2pgrid/core", "p2pgrid/client", "p2pgrid/cli", "node") for path in ROOT.glob(f"{room}/**/*.py")
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
INSIDE = {"failed", "gone", "arena-unknown"}
"""Codes that no user gets to see but in the demo, which says all."""
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


def sections() -> list[str]:
    page, _, _ = GridError().page.partition("#")
    return anchors(ROOT / page)


def codes_in_use() -> Iterator[str]:
    """Yield every code that is written down in the sources: `code="…"`."""
    for path in SOURCES:
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(one, ast.keyword) and one.arg == "code" and isinstance(one.value, ast.Constant):
                yield str(one.value.value)


@pytest.mark.parametrize("kind", TREE)
def test_every_error_names_a_section_that_is_there(kind: type[GridError]) -> None:
    """In its message, whatever else it says."""
    page, _, anchor = kind("what happened").page.partition("#")

    assert str(kind("what happened")).endswith(f"; more: {page}#{anchor}")
    assert anchor in sections()


def test_every_code_has_a_section() -> None:
    """Those of the table of exit codes, and those that the sources give."""
    codes = {*EXIT_CODES, *codes_in_use()} - SELF_EVIDENT - INSIDE - {"", "not-yet"}
    pages = {code: GridError(code=code).page.partition("#")[2] for code in sorted(codes)}

    assert len(codes) > 20
    assert {code for code, anchor in pages.items() if anchor not in sections()} == set()


def test_every_section_is_somebodys() -> None:
    """No section is left over from a code that is no more; none is there twice."""
    ours = set(errors._ANCHORS.values()) | {"when-something-is-wrong", "exit-codes"}
    found = sections()

    assert set(found) == ours
    assert len(found) == len(ours)


def test_every_exit_code_is_told() -> None:
    """The table of exit codes is that of the program."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    told = {
        code: int(number)
        for number, words in re.findall(r"^\| (\d+) \|[^|]*\| (.*?) *\|$", page, re.MULTILINE)
        for code in re.findall(r"`([a-z-]+)`", words)
    }

    assert told.pop("bug") == errors.ExitCode.BUG
    assert told == {code: int(number) for code, number in EXIT_CODES.items() if code != "elsewhere"} | {"not-yet": 2}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files are there, and so are the headings that are named."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    dead = []
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)

    assert dead == []


TYPED = re.compile(r"(?:^|\$ +|; |&& |next: )p2pgrid ((?:--?\w[\w-]* )*[a-z][\w-]*(?: .*)?)$")


def commands() -> Iterator[tuple[str, str]]:
    """Yield what the pages say to type: the page, and the words after `p2pgrid`."""
    for page in PAGES:
        if "decisions" in page.parts:
            continue  # they tell what was thought of, too
        text = re.sub(r"^## Not yet\n.*?^## ", "## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = re.findall(r"`([^`\n]*p2pgrid [^`\n]*)`", text) + re.findall(r"^    (p2pgrid .*)$", text, re.MULTILINE)
        for line in [*lines, *(line for block in blocks for line in block.splitlines())]:
            yield from ((page.name, words) for words in TYPED.findall(line.strip()))


def test_every_command_of_the_pages_is_one() -> None:
    """Verbs that are typed in README and docs are there today, with the flags that are given."""
    said = list(commands())

    assert len(said) > 80
    assert [one for one in said if not is_command(one[1])] == []
    assert not is_command("frobnicate last")
    assert not is_command("keep last --until 30d")
    assert not is_command("grid explode")


def is_command(line: str) -> bool:
    """Whether these words begin with a verb of today; flags that stand before a command or comment are its own."""
    words = line.partition("  #")[0].partition(" -- ")[0].split()
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb not in VERBS:
        return False
    command = grid.get_command(grid.make_context("p2pgrid", [], resilient_parsing=True), verb)
    while isinstance(command, click.Group):
        following = [word for word in words[words.index(verb) + 1 :] if not word.startswith("-")]
        if not following or following[0] not in command.commands:
            return not following or not following[0].isalpha()
        command = command.commands[following[0]]
    assert command is not None
    if verb in ("run", "map", "submit", "service"):
        return True  # flags of theirs and of the command they run
    flags = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"-h", "--help"}
    return all(word.partition("=")[0].rstrip(",;.:)") in flags for word in words if re.match(r"--?[a-z]", word))

"""The grammar of `where=`: what it means, and how it says no."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.where import WhereError, clauses, evaluate, parse

FACTS: dict[str, object] = {
    "arch": "aarch64",
    "os": "linux",
    "ram": 8 * 2**30,
    "cpus": 4,
    "python": "3.11",
    "metered": False,
    "groups": ["lab", "night"],
    "tags": {"site": "attic", "gpu-kind": "t4"},
    "odd": object(),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arch == 'aarch64' and ram > 4GiB", True),
        ("arch == 'aarch64' and ram > 9GiB", False),
        ('os == "linux" or cpus > 100', True),
        ("os != 'linux'", False),
        ("not os == 'darwin'", True),
        ("arch in ('x86_64', 'aarch64')", True),
        ("arch in ['x86_64']", False),
        ("arch not in ['x86_64',]", True),
        ("arch in ()", False),
        ("'night' in groups", True),
        ("'arch' in arch", True),
        ("'site' in tags", True),
        ("tags.site == 'attic'", True),
        ("tags.gpu-kind == 't4'", True),
        ("2 < cpus <= 4", True),
        ("4 < cpus < 8", False),
        ("(cpus == 4 or cpus == 8) and not (metered)", True),
        ("metered == false", True),
        ("true", True),
        ("none == None", True),
        ("cpus > -1", True),
        ("cpus >= 3.5", True),
        ("python >= '3.9'", True),
        ("python < '3.12'", True),
        ("os < 'macos'", True),
    ],
)
def test_a_condition_means_what_it_says(text: str, *, expected: bool) -> None:
    """Every form of the grammar, on one node."""
    assert evaluate(parse(text), FACTS) is expected


@pytest.mark.parametrize(
    "text",
    [
        "gpu == 'a'",
        "gpu != 'a'",
        "gpu not in ('a',)",
        "gpu",
        "tags.floor == 2",
        "arch.x == 1",
        "arch == 5",
        "arch != 5",
        "arch < 5",
        "metered == 0",
        "metered < true",
        "odd == 1",
        "odd",
        "1 in arch",
        "1 in tags",
        "'a' in cpus",
        "groups == 1",
        "none < none",
    ],
)
def test_the_unknown_and_the_unlike_are_false(text: str) -> None:
    """A node that lacks a fact, or has it in another kind, does not satisfy the comparison."""
    assert evaluate(parse(text), FACTS) is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch = 'x'", "where, column 6: write == to compare: arch ▶= 'x'"),
        ("arch ==", "where, column 8: expected a name or a value, found the end: arch ==▶"),
        ("(arch == 'x'", "where, column 13: expected 'and', 'or' or ')', found the end: (arch == 'x'▶"),
        ("arch 'x'", "where, column 6: expected 'and', 'or' or the end, found 'x': arch ▶'x'"),
        ("arch == 'x", "where, column 9: this text has no closing quote: arch == ▶'x"),
        ("ram > 4Gib", "where, column 7: not a number or size; write it like 4, 2.5 or 4GiB: ram > ▶4Gib"),
        ("arch in ('x' 'y')", "where, column 14: expected ',' or ')', found 'y': arch in ('x' ▶'y')"),
        ("arch in (os)", "where, column 10: expected a text or a number, found os: arch in (▶os)"),
        ("", "where, column 1: expected a name or a value, found the end: ▶"),
    ],
)
def test_an_error_marks_the_column(text: str, message: str) -> None:
    """The message shows the text, points into it and says what was expected."""
    with pytest.raises(WhereError) as caught:
        parse(text)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text", ["__import__('os')", "f(1)", "x.y()", "a; b", "lambda: 1", "x[0]", "1 + 1", "a if b else c", "\0"]
)
def test_a_program_is_refused(text: str) -> None:
    """What is not in the grammar cannot be said."""
    with pytest.raises(WhereError):
        parse(text)


@pytest.mark.parametrize("text", ["x" * 1025, "é" * 513, "(" * 200 + "x" + ")" * 200, "not " * 200 + "x"])
def test_length_and_depth_are_limited(text: str) -> None:
    """A text from a stranger exhausts neither memory nor stack."""
    with pytest.raises(WhereError):
        parse(text)


def test_clauses_keep_their_source() -> None:
    """Top-level `and`s are split, also inside parentheses and chains; `or` is not."""
    texts = [clause.text for clause in clauses(parse("arch == 'a' and (os == 'b' and 1 < cpus < 3) and (x or  y)"))]

    assert texts == ["arch == 'a'", "os == 'b'", "1 < cpus", "cpus < 3", "(x or  y)"]


@given(st.text(alphabet="abnotdri ()[]'\"=<>!,.0149GiB", max_size=60))
def test_any_text_is_a_condition_or_a_where_error(text: str) -> None:
    """What parses can be evaluated, and its clauses together mean the same."""
    try:
        where = parse(text)
    except WhereError:
        return

    held = evaluate(where, {"a": 1, "b": "b", "d": [1], "i": {"a": True}})

    assert held is all(evaluate(clause, {"a": 1, "b": "b", "d": [1], "i": {"a": True}}) for clause in clauses(where))
    assert all(parse(clause.text).root == clause.root for clause in clauses(where))

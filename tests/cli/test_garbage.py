"""A node that answers nonsense, and one that passes on what a liar among its peers said: no verb may crash."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.oracle import Oracle
from tests.cli.test_verbs import CASES, REQUEST_OF

ODD: list[Any] = [
    None, True, -1, 1e300, math.nan, math.inf, 2**63, b"\xff\x00", "", "x\x1b[2J\n\u202e", "9" * 5000,
    [], {}, [[]], [{}], {"a": {}}, {1: 2}, [None, 1, b"", "t"],
]  # fmt: skip
BUG = 70


@pytest.fixture(autouse=True)
def _files(home: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What some verbs read; and a member is not waited for."""
    Path("key").write_text("p2pgrid-recovery-1.AbC", encoding="utf-8")
    Path("pass").write_text("open sesame\n", encoding="utf-8")
    monkeypatch.setattr("tempfile.tempdir", str(home))


def spoilt(value: Any, rng: random.Random) -> Any:
    """Return an answer of which some parts are something else or missing."""
    if rng.random() < 0.15:
        return rng.choice(ODD)
    if isinstance(value, dict):
        return {key: spoilt(one, rng) for key, one in value.items() if rng.random() > 0.1}
    if isinstance(value, list):
        return [spoilt(one, rng) for one in value for _ in range(rng.choice((0, 1, 1, 2)))]
    return value


@pytest.mark.parametrize("case", CASES)
def test_no_answer_crashes_a_verb(run: Run, oracle: Oracle, case: str) -> None:
    """Whatever it is, there is output or one line of error, and JSON is JSON."""
    words, answer = CASES[case]
    verb = REQUEST_OF.get(case, words[0])
    rng = random.Random(case)
    answers = [{}, *(dict.fromkeys(answer, odd) for odd in ODD), *(spoilt(answer, rng) for _ in range(60))]
    for one in answers:
        oracle.answers[verb] = one if isinstance(one, dict) and "code" not in one else {}

        plain, as_json = run(*words), run(*words, "--json")

        assert plain.code != BUG, (one, plain.err)
        assert as_json.code != BUG, (one, as_json.err)
        assert "\x1b" not in plain.out + plain.err + as_json.out + as_json.err
        for line in (as_json.out + as_json.err).splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("answer", [[], 7, None, b"x", "text"])
def test_an_answer_that_is_no_object_is_told(run: Run, oracle: Oracle, answer: Any) -> None:
    """One line, exit 2."""
    oracle.raw["members"] = answer

    ran = run("members")

    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)

"""The error tree: what each error says, how it travels, what it exits with."""

import concurrent.futures
import pickle

import pytest

from p2pgrid.core import errors
from p2pgrid.core.errors import (
    ExitCode,
    GridError,
    NodeGone,
    NoNode,
    NotFound,
    RemoteError,
    TaskCancelled,
    TaskTimeout,
    error_from_wire,
    error_to_wire,
)

TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GridError)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_pickling(kind: type[GridError]) -> None:
    """An error that crosses a process keeps its type, text, advice and attributes."""
    error = kind("what happened", next="do this")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", TREE)
def test_every_message_ends_with_what_to_do_next(kind: type[GridError]) -> None:
    """Even an error raised without a word gives advice, and names its section of the documentation."""
    error = kind()

    assert str(error).endswith(f"; next: {error.next}; more: {error.page}")
    assert error.next
    assert error.page == f"docs/troubleshooting.md#{kind.code}"


def test_codes_are_distinct_and_kebab() -> None:
    """Scripts match on the codes, so no two classes share one."""
    codes = [kind.code for kind in TREE]

    assert len(set(codes)) == len(TREE) == 18
    assert all(code == code.lower().replace("_", "-") for code in codes)


def test_an_error_crosses_the_wire() -> None:
    """Code, message and advice are all another process needs to raise the same error."""
    wire = error_to_wire(NotFound("no job calm-river-42"))

    assert wire == {"code": "not-found", "message": "no job calm-river-42", "next": "list what there is: p2pgrid jobs"}
    assert type(error_from_wire(**wire)) is NotFound
    assert str(error_from_wire(**wire)) == (
        "no job calm-river-42; next: list what there is: p2pgrid jobs; more: docs/troubleshooting.md#not-found"
    )


def test_an_unknown_code_is_kept() -> None:
    """A newer node may send an error that this version has no class for."""
    error = error_from_wire("moon-phase", "not tonight", "wait")

    assert type(error) is GridError
    assert error_to_wire(error) == {"code": "moon-phase", "message": "not tonight", "next": "wait"}
    assert str(error) == "not tonight; next: wait"


@pytest.mark.parametrize("kind", TREE)
def test_every_code_finds_its_class_again(kind: type[GridError]) -> None:
    """No class is forgotten in the table that reads the wire."""
    again = error_from_wire(**error_to_wire(kind("x")))

    assert type(again) is kind


def test_a_gone_node_names_the_command_that_gets_the_result() -> None:
    """The message of NodeGone is the command to type."""
    error = NodeGone("calm-river-42")

    assert error.job_id == "calm-river-42"
    assert str(error).startswith(
        "the node went away while job calm-river-42 was running; next: p2pgrid node, then: p2pgrid show calm-river-42;"
    )


def test_cancelled_and_timed_out_are_what_the_standard_library_expects() -> None:
    """Cancelled is the executor's CancelledError; a task's timeout is not the TimeoutError of `result(timeout=)`."""
    assert issubclass(TaskCancelled, concurrent.futures.CancelledError)
    assert not issubclass(TaskTimeout, TimeoutError)


def test_a_remote_error_keeps_all_that_is_known() -> None:
    """Module, name, text and traceback are there for whoever lacks the class."""
    error = RemoteError("shop", "OutOfStock", "no bolts", "Traceback ...")

    assert (error.module, error.qualname, error.text, error.traceback) == (
        "shop",
        "OutOfStock",
        "no bolts",
        "Traceback ...",
    )
    assert error.message == "shop.OutOfStock: no bolts"


def test_exit_codes_follow_the_error() -> None:
    """A command ends with the number that its error stands for."""
    assert NoNode().exit_code is ExitCode.NO_NODE
    assert GridError("two jobs", code="ambiguous").exit_code is ExitCode.NOT_FOUND
    assert GridError("taken", code="directory-in-use").exit_code is ExitCode.WRONG
    assert TaskTimeout().exit_code is ExitCode.FAILED

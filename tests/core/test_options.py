"""Options: what is accepted, how they travel, and why no node fits."""

import json
import subprocess

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.options import TaskOptions, WireOptions, unmet, why_nowhere

GIB = 2**30


def node(**resources: float) -> dict[str, object]:
    return {"arch": "x86_64", "resources": {"cpu": 8, "mem": 4 * GIB} | resources}


def test_defaults_travel_as_nothing() -> None:
    """A map of a million tasks with default options pays nothing for them."""
    assert TaskOptions().to_wire() == {}
    assert WireOptions.from_wire({}) == WireOptions()


def test_options_cross_the_wire_in_seconds_bytes_and_names() -> None:
    """What the user wrote in units arrives as numbers; classes arrive as names."""
    options = TaskOptions().replace(
        retries=2,
        retry_on=(OSError, json.JSONDecodeError),
        timeout="1.5m",
        resources={"gpu": 1, "mem": "2GiB"},
        where="arch == 'x86_64'",
        name="julia",
        env={"A": "b"},
        keep="ref",
        keep_for="1h",
        strict=True,
    )

    wire = msgpack.unpackb(msgpack.packb(options.to_wire()))

    assert wire == {
        "retries": 2,
        "retry_on": [["builtins", "OSError"], ["json.decoder", "JSONDecodeError"]],
        "timeout_s": 90.0,
        "resources": {"cpu": 1, "gpu": 1, "mem": 2 * GIB},
        "where": "arch == 'x86_64'",
        "name": "julia",
        "env": {"A": "b"},
        "keep": "ref",
        "keep_for_s": 3600.0,
        "strict": True,
    }
    assert WireOptions.from_wire(wire) == WireOptions(
        retries=2,
        retry_on=(("builtins", "OSError"), ("json.decoder", "JSONDecodeError")),
        timeout_s=90.0,
        resources={"cpu": 1, "gpu": 1, "mem": 2 * GIB},
        where="arch == 'x86_64'",
        name="julia",
        env={"A": "b"},
        keep="ref",
        keep_for_s=3600.0,
        strict=True,
    )


def test_an_unknown_option_names_the_nearest() -> None:
    """A slip of the finger is answered with the right name."""
    with pytest.raises(TypeError, match="no option 'retrys': did you mean 'retries'"):
        TaskOptions().replace(retrys=1)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("retries", -1, ValueError),
        ("retries", "2", TypeError),
        ("retries", True, TypeError),
        ("retry_on", "OSError", TypeError),
        ("retry_on", (int,), TypeError),
        ("timeout", 0, ValueError),
        ("timeout", "soon", ValueError),
        ("timeout", [], TypeError),
        ("priority", 10**6, ValueError),
        ("resources", ["gpu"], TypeError),
        ("resources", {"gpu": -1}, ValueError),
        ("resources", {"gpu": float("nan")}, ValueError),
        ("resources", {"mem": "much"}, ValueError),
        ("resources", {"g p u": 1}, ValueError),
        ("where", "arch =", ValueError),
        ("where", len, TypeError),
        ("name", "a/b", ValueError),
        ("name", "last", ValueError),
        ("name", "x" * 65, ValueError),
        ("env", {"A": 1}, TypeError),
        ("env", {"A=": "1"}, ValueError),
        ("detach", 1, TypeError),
        ("keep", "copy", ValueError),
        ("keep_for", "1y", ValueError),
        ("copies", 0, ValueError),
        ("prints", None, TypeError),
        ("strict", "yes", TypeError),
    ],
)
def test_a_wrong_value_says_what_is_accepted(option: str, value: object, kind: type[Exception]) -> None:
    """The message names the option; nothing is stored."""
    with pytest.raises(kind, match=r"where|expected") as caught:
        TaskOptions().replace(**{option: value})

    assert option in str(caught.value)


def test_a_task_takes_one_cpu_unless_it_says_otherwise() -> None:
    """Asking for a GPU does not give up the CPU."""
    assert TaskOptions().replace(resources={"gpu": 1}).resources == {"cpu": 1, "gpu": 1}
    assert TaskOptions().replace(resources={"cpu": 0}).resources == {"cpu": 0}


def test_one_exception_class_is_as_good_as_a_tuple() -> None:
    """As in an `except` clause."""
    assert TaskOptions().replace(retry_on=OSError).retry_on == (OSError,)


def test_retry_on_matches_base_classes_by_name() -> None:
    """The daemon decides about a retry without importing anything."""
    options = WireOptions(retry_on=(("builtins", "OSError"),))

    assert options.retries_on([["builtins", "FileNotFoundError"], ["builtins", "OSError"]])
    assert not options.retries_on([["builtins", "ValueError"], ["builtins", "Exception"]])
    assert WireOptions().retries_on([["builtins", k.__name__] for k in subprocess.CalledProcessError.__mro__])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*WireOptions.__dataclass_fields__, "x"]), inner, max_size=4)
        ),
    ),
)
def test_any_message_is_options_or_a_value_error(wire: object) -> None:
    """A peer can send anything; only ValueError comes of it."""
    try:
        options = WireOptions.from_wire(wire)
    except ValueError:
        return
    assert isinstance(why_nowhere(options, [node()]), str)


def test_why_no_gpu() -> None:
    """The sentence that client, `jobs` and `explain` all show."""
    options = TaskOptions().replace(resources={"gpu": 1})

    assert why_nowhere(options, [node()]) == "0 of 1 nodes: gpu ≥ 1 (none has it)"


def test_why_clause_by_clause() -> None:
    """Each clause that some node lacks is counted; those that all satisfy are left out."""
    options = TaskOptions().replace(resources={"mem": "2GiB"}, where="arch == 'aarch64' and cpu_count")
    nodes = [node() | {"cpu_count": 1}, node() | {"cpu_count": 2}, node(mem=GIB) | {"cpu_count": 4}]

    assert why_nowhere(options, nodes) == (
        "0 of 3 nodes: mem ≥ 2.0 GiB (2 of 3 have it); arch == 'aarch64' (none has it)"
    )


def test_why_when_no_node_has_everything() -> None:
    """Each clause holds somewhere, but never all of them."""
    options = WireOptions(resources={"gpu": 1, "fpga": 1})

    assert why_nowhere(options, [node(gpu=1), node(fpga=1)]) == (
        "0 of 2 nodes: gpu ≥ 1 (1 of 2 has it); fpga ≥ 1 (1 of 2 has it)"
    )


def test_why_when_some_fit() -> None:
    """The head counts the nodes that satisfy everything."""
    assert why_nowhere(TaskOptions(), [node(), node()]) == "2 of 2 nodes"
    assert why_nowhere(TaskOptions(), []) == "0 of 0 nodes"


def test_unmet_lists_the_clauses_of_one_node() -> None:
    """Nothing unmet means that the node may run the task."""
    assert unmet({"cpu": 1, "gpu": 2.5}, "arch == 'aarch64' and resources.cpu > 4", node()) == [
        "gpu ≥ 2.5",
        "arch == 'aarch64'",
    ]
    assert unmet({"cpu": 8, "gpu": 0}, None, node()) == []
    assert unmet({"cpu": 1}, None, {}) == ["cpu ≥ 1"]


def test_env_is_not_shown() -> None:
    """Neither in the options as text nor in what is said of a wrong one."""
    options = TaskOptions().replace(env={"TOKEN": "secret"})
    with pytest.raises(ValueError, match="65536 in all") as error:
        options.replace(env={"TOKEN": "secret" * 20_000})

    with pytest.raises(TypeError, match="'N' is int") as wrong:
        options.replace(env={"TOKEN": "secret", "N": 1})

    assert "secret" not in str(wrong.value) + repr(options) + repr(WireOptions.from_wire(options.to_wire())) + str(
        error.value
    )

"""Names of jobs, nodes and grids (stub: signatures are final)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What a verb is aimed at: a whole job (lo and hi None), or its tasks lo <= i < hi."""

    job_text: str
    lo: int | None = None
    hi: int | None = None


def job_name(job_id: bytes) -> str:
    """Return `calm-river-42` for 16 bytes."""
    raise NotImplementedError


def node_name(key: bytes) -> str:
    """Return `quiet-fox` for a node's public key."""
    raise NotImplementedError


def grid_name(key: bytes) -> str:
    """Return `blue-otter` for a grid's public key."""
    raise NotImplementedError


def parse_target(text: str) -> Target:
    """Read `JOB`, `JOB/17`, `JOB/3-9`, `last`, `all`; ValueError if it is none of them."""
    raise NotImplementedError


def match(text: str, jobs: Mapping[bytes, str | None]) -> list[bytes]:
    """Return the jobs meant by `text`: [] = not found, two or more = ambiguous."""
    raise NotImplementedError

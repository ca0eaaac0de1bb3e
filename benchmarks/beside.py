"""Other systems that benchmarks measure beside this one, started so that nothing of them stays on the machine."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 1024**3


@contextlib.contextmanager
def started_ray(folder: Path, workers: int) -> Iterator[Any]:
    """Start Ray with so many workers and yield its module; its token is in `folder`."""
    import ray  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415 - may be missing

    token = folder / "ray-token"  # Ray would write one into the user's home
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token))
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
    )
    try:
        yield ray
    finally:
        ray.shutdown()

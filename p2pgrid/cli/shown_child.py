"""The child that shows values: it unpickles what came from peers, and nobody else in the command line does.

Run as a file by the interpreter of the node's workers, so that it finds the classes they find; imports nothing of ours.
Questions come on stdin: a line of JSON {"shape", "sizes", "form", "lo"}, then the pickles, of `sizes` bytes each;
of shape 3 it is one, and its buffers. A
line of JSON goes out, with one element for each value: its repr; {"repr", "value"} if JSON can say it and shall;
{"pickle"}; or {"error"} if it cannot be read.
"""

import base64
import contextlib
import json
import math
import os
import pickle
import resource
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

PACKED, LARGE = 1, 3
REPR_MAX = 16 << 20
DEPTH_MAX = 64
MEMORY_MAX = 8 << 30
CPU_S = 600


def limit() -> None:
    """Take little: no files, no cores, half of the memory, and the first place when memory ends."""
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    wanted = {"CORE": 0, "FSIZE": 0, "DATA": min(half, MEMORY_MAX), "CPU": CPU_S}
    for name, most in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    with contextlib.suppress(OSError):
        os.nice(5)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:  # noqa: PTH123
        score.write("500")


def sayable(value: object, depth: int = DEPTH_MAX) -> bool:
    """Say whether JSON can say a value."""
    match value:
        case None | bool() | int() | str():
            return True
        case float():
            return math.isfinite(value)
        case list() | tuple():
            return depth > 0 and all(sayable(one, depth - 1) for one in value)
        case dict():
            return depth > 0 and all(isinstance(key, str) and sayable(one, depth - 1) for key, one in value.items())
    return False


def shown(value: object, form: str, index: int) -> str | dict[str, Any]:
    """Return what is said of a value; its own methods may do what they want."""
    if form == "pickle":
        try:
            from cloudpickle import dumps  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            from pickle import dumps
        return {"pickle": base64.b64encode(dumps((index, value), 5)).decode()}
    try:
        text = repr(value)[:REPR_MAX]
    except Exception as error:  # noqa: BLE001 - a repr runs somebody's code
        text = f"<a {type(value).__qualname__} whose repr raises {type(error).__name__}: {error}>"
    if type(value).__name__ == "CompletedProcess":  # a program's: subprocess itself need not be imported for that
        value = {name: getattr(value, name, None) for name in ("args", "returncode", "stdout", "stderr")}
    if form == "jsonl" and sayable(value):
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return {"repr": text, "value": json.loads(json.dumps(value))}
    return text


def answers(question: dict[str, Any], data: list[bytes]) -> Iterator[str | dict[str, Any]]:
    """Yield what is said of each value; when one of a packed list cannot be read, none can."""
    index = question["lo"]
    buffers = data[1:] if question["shape"] == LARGE else []
    for one in data[:1] if question["shape"] == LARGE else data:
        try:
            value: Any = pickle.loads(one, buffers=buffers) if one else None  # noqa: S301 - what this process is for
            values = list(value) if question["shape"] == PACKED else [value]
        except Exception as error:  # noqa: BLE001 - unpickling runs somebody's code
            yield {"error": f"{type(error).__name__}: {error}"[:1000]}
            index += 1
            continue
        for value in values:
            try:
                yield shown(value, question["form"], index)
            except Exception as error:  # noqa: BLE001 - and so does pickling
                yield {"error": f"{type(error).__name__}: {error}"[:1000]}
            index += 1


def serve(source: BinaryIO, out: BinaryIO) -> None:
    """Answer until nobody asks any more."""
    while line := source.readline():
        question = json.loads(line)
        data = [source.read(size) for size in question["sizes"]]
        out.write(json.dumps(list(answers(question, data))).encode() + b"\n")
        out.flush()


def main() -> None:
    """Keep the pipe for ourselves: what values print goes nowhere."""
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    limit()
    serve(sys.stdin.buffer, out)


if __name__ == "__main__":
    main()

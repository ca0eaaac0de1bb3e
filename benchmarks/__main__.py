"""`python -m benchmarks NAME [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

NAMES = ("hotpath", "data", "arena", "grid", "uneven", "idle", "detect", "links", "simulator", "survive")


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed")
    module = importlib.import_module(f"benchmarks.{parser.parse_known_args()[0].name}")
    own = module.add_arguments(parser) if hasattr(module, "add_arguments") else ()
    arguments = parser.parse_args()
    figures = module.run(arguments.rounds, **{name: getattr(arguments, name) for name in own})
    text = json.dumps({"v": 1, "benchmark": arguments.name, **figures}, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

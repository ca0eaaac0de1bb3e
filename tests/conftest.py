"""What holds for every test: nodes listen on loopback, on ports nobody else has."""

from __future__ import annotations

import os

os.environ["P2PGRID_NODE_LISTEN"] = "127.0.0.1:0"

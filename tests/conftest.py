"""What holds for every test: nodes listen on loopback, on ports nobody else has, and say nothing on the LAN."""

from __future__ import annotations

import os

os.environ["P2PGRID_NODE_LISTEN"] = "127.0.0.1:0"
os.environ["P2PGRID_NODE_NO_MDNS"] = "1"

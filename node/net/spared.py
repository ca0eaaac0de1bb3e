"""What libp2p imports for things that a node never does, and need not have in memory: it is imported when it is used.

The host asks for a TLS certificate for browsers if it is told to (AutoTLS); two modules are for that alone, and bring
two HTTP clients, a terminal library and tables of character sets: 11 of the 100 MB that a node takes. In their place
stand modules whose functions import the real ones when they are called.

Rule: imported before libp2p, so by this package's own `__init__`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

SPARED = {
    "libp2p.security.tls.autotls.acme": ("ACMEClient", "compute_b36_peer_id"),
    "libp2p.security.tls.autotls.broker": ("BrokerClient",),
}
"""Modules, and what the rest of libp2p imports from them; it does nothing with these names but call them."""


def spare() -> None:
    """Have these modules imported when they are used, those that are not there already."""
    for name, used in SPARED.items():
        if name not in sys.modules:
            stand_in = ModuleType(name, "Imported when it is used.")
            for word in used:
                setattr(stand_in, word, _calls(name, word))
            sys.modules[name] = stand_in


def _calls(module: str, word: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if module in SPARED and getattr(sys.modules.get(module), word, None) is call:
            del sys.modules[module]
        return getattr(importlib.import_module(module), word)(*args, **kwargs)

    return call

"""How fast news of members spread, by the preset of the network: the figures of ALGORITHMS §2.4 and 2.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """Times in seconds."""

    gossip_s: float = 0.2
    fanout: int = 3
    updates_max: int = 6
    """Per message."""
    told_factor: int = 4
    """Each piece of news is told factor · ⌈log10(N + 1)⌉ times."""
    sync_s: float = 30.0
    dead_s: float = 60.0
    """How long the dead are remembered; a node that only slept that long can refute."""
    members_max: int = 4096
    accusers_max: int = 4
    """Distinct accusers of one member whose word is passed on: a suspicion and three confirmations."""
    lost_max: int = 64
    """Nodes outside the view that are asked now and then: a partition may last longer than the memory of the dead."""
    chunk_bytes: int = 32 * 1024
    """Of one RECORDS frame; control frames end at 64 KiB."""
    buckets_when_full: int = 4
    """Bounded views always differ: then so many buckets are exchanged per round."""
    clone_again_s: float = 60.0


LOCAL = ViewOptions(gossip_s=0.1, sync_s=15.0, dead_s=30.0)
LAN = ViewOptions()
WAN = ViewOptions(gossip_s=0.5, sync_s=60.0, dead_s=120.0)
EDGE = ViewOptions(gossip_s=1.0, fanout=2, sync_s=120.0, dead_s=600.0)
PRESETS: Mapping[str, ViewOptions] = MappingProxyType({"local": LOCAL, "lan": LAN, "wan": WAN, "edge": EDGE})

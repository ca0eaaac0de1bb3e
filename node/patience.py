"""How patient a node is with the others, by the preset of its network: the figures of ALGORITHMS §2.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class LivenessOptions:
    """Times in seconds."""

    slot_s: float = 0.5
    """T: one subject is probed per slot, so that eight are each probed every 4 s."""
    timeout_min_s: float = 0.1
    timeout_max_s: float = 0.25
    """A direct answer is waited for as long as round trips so far suggest, within these."""
    misses: int = 3
    """c: with 1, lost datagrams make storms of suspicion."""
    helpers: int = 3
    suspicion_min_s: float = 4.0
    suspicion_grows: bool = True
    """min · max(1, log10(N) / 2): news needs longer in a large grid."""
    suspicion_factor: float = 4.0
    """max = factor · min, for a suspicion that nobody confirms."""
    confirmations: int = 3
    """Other observers that bring a suspicion down to its minimum."""
    health_max: int = 8
    health_well: int = 3
    """A node worse than this leaves it to others to declare deaths: its own suspicions last up to 3.5 times as long."""
    leaf: bool = False
    heartbeat_s: float = 30.0
    heartbeat_to: int = 3
    leaf_silence_s: float = 75.0
    """Two heartbeats and a half: then a leaf is probed."""
    leaf_suspicion_s: float = 10.0
    gone_kept: int = 1024
    relays_max: int = 256
    late_kept: int = 64


LOCAL = LivenessOptions(suspicion_min_s=3.0)
LAN = LivenessOptions()
WAN = LivenessOptions(
    slot_s=1.0, timeout_min_s=0.5, timeout_max_s=1.0, suspicion_min_s=8.0, suspicion_grows=False
)  # fmt: skip
EDGE = LivenessOptions(
    slot_s=2.0, timeout_min_s=0.5, timeout_max_s=2.0, suspicion_min_s=10.0, suspicion_grows=False, leaf=True
)  # fmt: skip
PRESETS: Mapping[str, LivenessOptions] = MappingProxyType({"local": LOCAL, "lan": LAN, "wan": WAN, "edge": EDGE})

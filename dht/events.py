"""What goes into the DHT's machine and what comes out: the only words that `dht/machine.py` and its shells share.

A shell carries effects out in the order given and decides nothing. For every `Ask` it reports one `Answered` or
`Failed` with the same token, however late; for every `Requested` it gets one `Answer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.dht.records import Reason
from p2pgrid.dht.wire import Contact, Message

# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a life."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of `SetTimer` has come."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Grid time in unix seconds, minus `now`: said before anything is put or judged, and when it changes."""

    offset_s: float


@dataclass(frozen=True, slots=True)
class Listens:
    """Where this node can be reached, as binary multiaddrs; goes into its provider records."""

    addresses: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MemberUp:
    """The member view has this peer, alive; again when its addresses change."""

    contact: Contact
    serves: bool = True
    """False: a leaf, which is found but never asked."""


@dataclass(frozen=True, slots=True)
class MemberDown:
    peer: bytes


@dataclass(frozen=True, slots=True)
class Requested:
    """Somebody asks; None for bytes that are no message."""

    token: int
    peer: Contact
    message: Message | None
    is_member: bool = True
    """False: a stranger, who may ask and leave nothing, and is never asked."""


@dataclass(frozen=True, slots=True)
class Answered:
    token: int
    message: Message


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer will come: not reached, refused, reset, malformed."""

    token: int


@dataclass(frozen=True, slots=True)
class Find:
    """Command: find a peer by its binary PeerId. Done with Found."""

    ticket: int
    peer: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Command: keep this payload under that key, and renew it until Withdraw. Done with Stored or Refused."""

    ticket: int
    key: bytes
    payload: bytes
    renew: bool = True


@dataclass(frozen=True, slots=True)
class Get:
    """Command: Done with Value."""

    ticket: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Provide:
    """Command: say that this node has what `key` names, until Withdraw. Done with Stored or Refused."""

    ticket: int
    key: bytes


@dataclass(frozen=True, slots=True)
class FindProviders:
    """Command: Done with ProvidersFound."""

    ticket: int
    key: bytes
    count: int = 20


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Command: renew that key no more; what others keep expires. No Done."""

    key: bytes


Command = Find | Put | Get | Provide | FindProviders
Event = (
    Started | Tick | Clock | Listens | MemberUp | MemberDown | Requested | Answered | Failed | Withdraw | Command
)  # fmt: skip

# ---- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request, dialling if need be."""

    token: int
    peer: Contact
    message: Message


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request; None: reset the stream, as the specification wants it for whatever is refused."""

    token: int
    message: Message | None


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send Tick at that time; replaces the one before."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Found:
    peer: Contact | None
    """The one that was looked for, if it answered."""
    closest: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    copies: int
    """At so many nodes, this one included; 0: nowhere."""


@dataclass(frozen=True, slots=True)
class Value:
    payload: bytes | None
    """None: nobody has it."""


@dataclass(frozen=True, slots=True)
class ProvidersFound:
    providers: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that cannot be carried out."""

    reason: Reason


Result = Found | Stored | Value | ProvidersFound | Refused


@dataclass(frozen=True, slots=True)
class Done:
    """A command has ended."""

    ticket: int
    result: Result


Effect = Ask | Answer | SetTimer | Done

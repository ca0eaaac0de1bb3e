"""Every error a user of p2pgrid can meet, and the one that stays inside.

    GridError                        whatever the caller should know about; each says what to do next
    ├── NoNode                       no node answers on this machine
    ├── NodeGone                     the node went away while we waited; carries the job's id
    ├── NotFound                     nobody within reach knows that id
    ├── Unschedulable                no node satisfies the options
    ├── NotSerializable              a function or argument cannot be pickled
    ├── DependencyFailed             an argument was the future of a task that failed (its error is the cause)
    ├── WorkerCrashed                the process that ran the task died, too often
    ├── TaskTimeout                  the task ran longer than its own `timeout` (not a TimeoutError)
    ├── TaskMemoryExceeded           the task used more memory than it asked for
    ├── TaskCancelled                cancelled (also a concurrent.futures.CancelledError)
    ├── ObjectLost                   every copy of an object is gone
    ├── ResultLost                   every copy of a result is gone, and running again gave another one
    ├── QuotaExceeded                too large, or no room is left
    ├── NotAuthorized                this member may not do that
    ├── VersionMismatch              two versions that cannot work together
    ├── MissingModule                the task imports a module that no fit node has
    └── RemoteError                  the user's own exception, where its class cannot be rebuilt here
    PeerError                        a peer broke the protocol: internal, drop the peer and go on

Rule: a `GridError` is the caller's business, a `PeerError` a peer's; our own mistakes are assertions and never
appear here.
"""

from concurrent.futures import CancelledError
from enum import IntEnum
from typing import ClassVar, TypedDict


class ExitCode(IntEnum):
    """What a process of ours ends with; scripts rely on the numbers."""

    DONE = 0
    FAILED = 1
    """The work failed."""
    WRONG = 2
    """What was given is wrong and repeating will not help: usage, invite, directory in use, port, newer journal."""
    NO_NODE = 3
    NOT_FOUND = 4
    """Not found, or ambiguous."""
    REFUSED = 5
    TIMED_OUT = 6
    UNSCHEDULABLE = 7
    BUG = 70
    """Ours; the path of a report is printed."""
    OURS_IN_RUN = 125
    """Our own failure in `run` and `map`, which otherwise pass the command's code."""
    INTERRUPTED = 130


EXIT_CODES: dict[str, ExitCode] = {
    "no-node": ExitCode.NO_NODE,
    "node-gone": ExitCode.NO_NODE,
    "not-found": ExitCode.NOT_FOUND,
    "ambiguous": ExitCode.NOT_FOUND,
    "elsewhere": ExitCode.NOT_FOUND,
    "not-authorized": ExitCode.REFUSED,
    "quota-exceeded": ExitCode.REFUSED,
    "in-a-grid": ExitCode.REFUSED,
    "timed-out": ExitCode.TIMED_OUT,
    "unschedulable": ExitCode.UNSCHEDULABLE,
    "usage": ExitCode.WRONG,
    "not-yet": ExitCode.WRONG,
    "not-serializable": ExitCode.WRONG,
    "version-mismatch": ExitCode.WRONG,
    "bad-invite": ExitCode.WRONG,
    "directory-in-use": ExitCode.WRONG,
    "directory-unusable": ExitCode.WRONG,
    "port-in-use": ExitCode.WRONG,
    "journal-newer": ExitCode.WRONG,
    "journal-corrupt": ExitCode.WRONG,
}
"""Exit code by error code; a code that is not listed here means that the work failed."""


PAGE = "docs/troubleshooting.md"
"""Where every error has a section, named as its code."""
SELF_EVIDENT = frozenset({"usage", "not-yet", "interrupted"})
"""Codes whose messages answer what was just typed, and name the help for it: no page is needed."""


class WireError(TypedDict):
    """The form in which an error crosses a socket or is printed by `--json`."""

    code: str
    message: str
    next: str


class GridError(Exception):
    """An error that is the caller's business.

    Attributes:
        message: what happened, one line without the advice.
        code: a stable kebab-case name; scripts match on it.
        next: what to do next, as a command where there is one.
    """

    code: str = "grid-error"
    advice: ClassVar[str] = "see what the grid is doing: p2pgrid status"

    def __init__(self, message: str = "", *, next: str = "", code: str = "") -> None:  # noqa: A002 - the wire's word
        """Say what happened, and what to do next if the class's own advice is too general."""
        super().__init__(message)
        self.message = message
        self.next = next or self.advice
        if code:
            self.code = code

    def __str__(self) -> str:
        """Return the message, which always ends with what to do next, and where more of it is said."""
        more = f"; more: {self.page}" if self.page else ""
        return f"{self.message or self.code}; next: {self.next}{more}"

    @property
    def page(self) -> str:
        """The section of the documentation that tells why it happens and what helps; empty if there is none."""
        return f"{PAGE}#{_ANCHORS[self.code]}" if self.code in _ANCHORS else ""

    @property
    def exit_code(self) -> ExitCode:
        """What a command that ends with this error exits with."""
        return EXIT_CODES.get(self.code, ExitCode.FAILED)


class NoNode(GridError):
    """No node answers on this machine."""

    code = "no-node"
    advice = "start one: p2pgrid node"


class NodeGone(GridError):
    """The local node went away while the caller waited; the job does not need it."""

    code = "node-gone"
    advice = "start it again: p2pgrid node"

    def __init__(self, job_id: str = "", message: str = "", *, next: str = "", code: str = "") -> None:  # noqa: A002
        """Name the job; the message and the command to type follow from it."""
        if job_id:
            message = message or f"the node went away while job {job_id} was running"
            next = next or f"p2pgrid node, then: p2pgrid show {job_id}"  # noqa: A001
        super().__init__(message or "the node went away", next=next, code=code)
        self.job_id = job_id
        self.args = (job_id, message)


class NotFound(GridError):
    """Nobody within reach knows that id."""

    code = "not-found"
    advice = "list what there is: p2pgrid jobs"


class Unschedulable(GridError):
    """No node satisfies the options."""

    code = "unschedulable"
    advice = "relax the options, or see what there is: p2pgrid status"


class NotSerializable(GridError):
    """A function or an argument cannot be pickled; nothing was sent."""

    code = "not-serializable"
    advice = "pass plain data, and open files, locks and sockets inside the task"


class DependencyFailed(GridError):
    """An argument was the future of a task that failed; its error is the cause."""

    code = "dependency-failed"
    origin = ""
    """The id of the task that failed first."""
    advice = "mend the task it depends on, whose error is the cause of this one"


class WorkerCrashed(GridError):
    """The process that ran the task died, too often to try again."""

    code = "worker-crashed"
    advice = "read what it printed last: p2pgrid logs JOB/TASK"


class TaskTimeout(GridError):
    """The task ran longer than its own `timeout`."""

    code = "task-timeout"
    advice = "give it more time: options(timeout=...)"


class TaskMemoryExceeded(GridError):
    """The task used more memory than it asked for."""

    code = "task-memory-exceeded"
    advice = 'ask for more: options(resources={"mem": ...})'


class TaskCancelled(GridError, CancelledError):
    """The task was cancelled."""

    code = "task-cancelled"
    advice = "submit it again if it is still wanted"


class ObjectLost(GridError):
    """Every copy of an object is gone."""

    code = "object-lost"
    advice = "put it again, or keep more of them: options(copies=...)"


class ResultLost(GridError):
    """Every copy of a result is gone, and running the task again gave another value."""

    code = "result-lost"
    advice = "submit the task again, or keep more copies: options(copies=...)"


class QuotaExceeded(GridError):
    """Too large, or no room is left."""

    code = "quota-exceeded"
    advice = "make it smaller, or free room: p2pgrid jobs, then Grid().job(ID).forget()"


class NotAuthorized(GridError):
    """A member may not do that."""

    code = "not-authorized"
    advice = "ask an admin of the grid for the role: p2pgrid promote NODE"


class VersionMismatch(GridError):
    """Two versions that cannot work together."""

    code = "version-mismatch"
    advice = "install the same version on both sides: p2pgrid --version"


class MissingModule(GridError):
    """The task imports a module that no fit node has."""

    code = "missing-module"
    advice = "install it where the workers run: p2pgrid status shows their Python"


class RemoteError(GridError):
    """The user's own exception, where its class cannot be rebuilt faithfully on this side.

    Attributes:
        module: the module of its class.
        qualname: the name of its class inside that module.
        text: what `str()` of it gave.
        traceback: the traceback as printed where it was raised.
    """

    code = "remote-error"
    advice = "read the remote traceback above"

    def __init__(
        self,
        module: str = "",
        qualname: str = "",
        text: str = "",
        traceback: str = "",
        *,
        next: str = "",  # noqa: A002
        code: str = "",
    ) -> None:
        """Keep the four things that are known about an exception from elsewhere."""
        name = ".".join(part for part in (module, qualname) if part and part != "builtins")
        super().__init__(": ".join(part for part in (name, text) if part), next=next, code=code)
        self.module = module
        self.qualname = qualname
        self.text = text
        self.traceback = traceback
        self.args = (module, qualname, text, traceback)


class PeerError(Exception):
    """A peer broke the protocol. Internal: whoever catches it drops the peer and goes on."""


_BY_CODE: dict[str, type[GridError]] = {
    error.code: error
    for error in (
        GridError,
        NoNode,
        NodeGone,
        NotFound,
        Unschedulable,
        NotSerializable,
        DependencyFailed,
        WorkerCrashed,
        TaskTimeout,
        TaskMemoryExceeded,
        TaskCancelled,
        ObjectLost,
        ResultLost,
        QuotaExceeded,
        NotAuthorized,
        VersionMismatch,
        MissingModule,
        RemoteError,
    )
}
_BY_CODE["ambiguous"] = _BY_CODE["elsewhere"] = NotFound
_OTHERS = ("bug", "no-shared-memory", "no-systemd", "not-unpickled")
_ANCHORS = {code: code for code in (*_BY_CODE, *EXIT_CODES, *_OTHERS) if code not in SELF_EVIDENT}
_ANCHORS |= {"elsewhere": "not-found", "circle": "dependency-failed"}
"""Sections of PAGE by code; one that a newer version added has none here."""


def error_to_wire(error: GridError) -> WireError:
    """Return the three texts that tell another process what happened."""
    return {"code": error.code, "message": error.message, "next": error.next}


def error_from_wire(code: str, message: str, next: str = "") -> GridError:  # noqa: A002
    """Build the error again; a code that a newer version added becomes a plain `GridError` that keeps it."""
    kind = _BY_CODE.get(code, GridError)
    if kind is NodeGone:
        return NodeGone("", message, next=next)
    if kind is RemoteError:
        return RemoteError(text=message, next=next)
    return kind(message, next=next, code=code)

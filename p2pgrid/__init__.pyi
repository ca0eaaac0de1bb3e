from concurrent.futures import as_completed as as_completed
from concurrent.futures import wait as wait

from p2pgrid.client.defaults import (
    get as get,
)
from p2pgrid.client.defaults import (
    map as map,  # noqa: A004
)
from p2pgrid.client.defaults import (
    put as put,
)
from p2pgrid.client.defaults import (
    start as start,
)
from p2pgrid.client.defaults import (
    submit as submit,
)
from p2pgrid.client.future import Future as Future
from p2pgrid.client.grid import Grid as Grid
from p2pgrid.client.job import Job as Job
from p2pgrid.client.localgrid import LocalGrid as LocalGrid
from p2pgrid.client.members import Member as Member
from p2pgrid.client.results import Results as Results
from p2pgrid.core.current import current as current
from p2pgrid.core.current import progress as progress
from p2pgrid.core.errors import (
    DependencyFailed as DependencyFailed,
)
from p2pgrid.core.errors import (
    GridError as GridError,
)
from p2pgrid.core.errors import (
    MissingModule as MissingModule,
)
from p2pgrid.core.errors import (
    NodeGone as NodeGone,
)
from p2pgrid.core.errors import (
    NoNode as NoNode,
)
from p2pgrid.core.errors import (
    NotAuthorized as NotAuthorized,
)
from p2pgrid.core.errors import (
    NotFound as NotFound,
)
from p2pgrid.core.errors import (
    NotSerializable as NotSerializable,
)
from p2pgrid.core.errors import (
    ObjectLost as ObjectLost,
)
from p2pgrid.core.errors import (
    QuotaExceeded as QuotaExceeded,
)
from p2pgrid.core.errors import (
    RemoteError as RemoteError,
)
from p2pgrid.core.errors import (
    ResultLost as ResultLost,
)
from p2pgrid.core.errors import (
    TaskCancelled as TaskCancelled,
)
from p2pgrid.core.errors import (
    TaskMemoryExceeded as TaskMemoryExceeded,
)
from p2pgrid.core.errors import (
    TaskTimeout as TaskTimeout,
)
from p2pgrid.core.errors import (
    Unschedulable as Unschedulable,
)
from p2pgrid.core.errors import (
    VersionMismatch as VersionMismatch,
)
from p2pgrid.core.errors import (
    WorkerCrashed as WorkerCrashed,
)
from p2pgrid.core.files import File as File
from p2pgrid.core.ref import Ref as Ref

__version__: str
__all__ = [
    "DependencyFailed", "Future", "Grid", "GridError", "Job", "LocalGrid", "Member", "MissingModule", "NoNode",
    "NodeGone", "NotAuthorized", "NotFound", "NotSerializable", "ObjectLost", "QuotaExceeded", "Ref", "RemoteError",
    "ResultLost", "Results", "TaskCancelled", "TaskMemoryExceeded", "TaskTimeout", "Unschedulable", "VersionMismatch",
    "WorkerCrashed", "as_completed", "current", "get", "map", "progress", "put", "start", "submit", "wait",
]  # fmt: skip

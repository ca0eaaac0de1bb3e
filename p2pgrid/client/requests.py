"""Questions to the node that wait for an answer: matched by their number, asked again on a new connection."""

import itertools
from concurrent.futures import Future
from typing import Any

from p2pgrid.core.errors import GridError
from p2pgrid.core.messages import REQUEST
from p2pgrid.core.wire import frame


class Requests:
    """The questions of one session that have no answer yet. Sans-IO; each operation is atomic by itself."""

    def __init__(self) -> None:
        """Start with none."""
        self._ids = itertools.count(1)
        self._open: dict[int, tuple[Future[Any], bytes]] = {}

    def ask(self, verb: str, arguments: dict[str, Any]) -> tuple[int, Future[Any], bytes]:
        """Return number, future and frame of a new question."""
        id_ = next(self._ids)
        answer: Future[Any] = Future()
        data = frame(REQUEST, [verb, arguments], id_)
        self._open[id_] = answer, data
        return id_, answer, data

    def wait(self, verb: str, id_: int, answer: Future[Any], timeout_s: float) -> dict[str, Any]:
        """Return the answer to a question. Raises GridError, also if none comes in time."""
        try:
            return answer.result(timeout_s)  # type: ignore[no-any-return]
        except TimeoutError:
            msg = f"the node did not answer {verb!r} within {timeout_s:g} s"
            raise GridError(msg, code="timed-out", next="see how it is: p2pgrid status") from None
        finally:
            self.forget(id_)

    def answered(self, id_: int, body: Any, error: GridError | None) -> None:
        """Take an answer, or an error; late ones are passed over."""
        answer, _ = self._open.pop(id_, (None, b""))
        if answer is None:
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(body)

    def forget(self, id_: int) -> None:
        """Nobody waits for that answer any more."""
        self._open.pop(id_, None)

    def again(self) -> bytes:
        """Return the frames of all open questions, for a new connection. All of them may be asked twice."""
        return b"".join(data for _, data in list(self._open.values()))

    def give_up(self, error: GridError) -> None:
        """Tell everybody who waits that no answer will come."""
        while self._open:
            _, (answer, _) = self._open.popitem()
            answer.set_exception(error)

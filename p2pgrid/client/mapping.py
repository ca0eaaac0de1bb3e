"""How a map is to be done, as its caller said; checked before anything is sent."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class MapWay:
    """How a map is to be done, as its caller said."""

    timeout: float | None
    chunksize: int | Literal["auto"]
    buffersize: int | None
    progress: bool | str | None
    ordered: bool = True

    def check(self) -> None:
        """Raise TypeError or ValueError for what is not accepted."""
        if self.progress is not None and not isinstance(self.progress, bool | str):
            msg = f"progress={self.progress!r}: expected True, False or a label for the bar"
            raise TypeError(msg)
        for name, value in (("chunksize", self.chunksize), ("buffersize", self.buffersize)):
            if isinstance(value, int) and value < 1:
                msg = f"{name}={value!r}: expected a whole number of at least 1"
                raise ValueError(msg)


def total_of(iterables: tuple[Any, ...]) -> int | None:
    """Return how many tasks a map over these makes, or None where one does not know its length."""
    try:
        return min((len(one) for one in iterables), default=0)
    except TypeError:
        return None

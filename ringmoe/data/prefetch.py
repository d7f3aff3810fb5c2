"""Work done ahead in one thread, with a bounded store."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_PATIENCE = 0.1  # seconds between looks at whether to stop


class Prefetch(Generic[T]):
    """Calls ``make(first)``, ``make(first + 1)``, ... in a thread, at most ``depth`` ahead of the consumer.

    What ``make`` raises is raised by ``next`` in its turn. ``close`` ends the thread and waits for it.
    """

    def __init__(self, make: Callable[[int], T], *, first: int, depth: int) -> None:
        """Starts the thread."""
        self._make = make
        self._ready: queue.Queue[T | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first,), name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """The prefetcher itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def next(self) -> T:
        """The next result; waits for it where it is not ready."""
        result = self._ready.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Ends the thread; what was made ahead is dropped."""
        self._stop.set()
        self._thread.join()

    def _run(self, number: int) -> None:
        """Makes one result after the other until it is stopped or one fails."""
        while not self._stop.is_set():
            try:
                result: T | BaseException = self._make(number)
            except BaseException as error:
                result = error
            while not self._stop.is_set():
                try:
                    self._ready.put(result, timeout=_PATIENCE)
                    break
                except queue.Full:
                    continue
            if isinstance(result, BaseException):
                return
            number += 1

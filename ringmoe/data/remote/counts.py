"""What reading from elsewhere has cost so far, and what went wrong on the way."""

from collections import Counter
from threading import Lock

from rich.filesize import decimal

REQUESTS = "requests"
REPEATED = "repeated"
BYTES = "bytes"
HITS = "cache_hits"
MISSES = "cache_misses"
DAMAGED = "cache_damaged"
NOT_KEPT = "cache_not_kept"
RENEWED = "renewed"
NAMES = (REQUESTS, REPEATED, BYTES, HITS, MISSES, DAMAGED, NOT_KEPT, RENEWED)


class Counts:
    """Counts of one folder in one process; any number of threads may add to them.

    * ``requests``: attempts, failed ones included; ``repeated``: those that failed and were made again;
    * ``bytes``: what came in answers that were good;
    * ``cache_hits`` and ``cache_misses``: ranges that were, or were not, in the cache;
    * ``cache_damaged``: entries of the cache that were dropped because their bytes had changed;
    * ``cache_not_kept``: ranges that the cache could not keep, as on a full disk;
    * ``renewed``: ranges that had the wrong checksum and were read again past the cache.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Adds to a count."""
        with self._lock:
            self._values[name] += number

    def add_fault(self, kind: str) -> None:
        """Notes an attempt that failed."""
        with self._lock:
            self._faults[kind] += 1

    def values(self) -> dict[str, int]:
        """Every count of ``NAMES``."""
        with self._lock:
            return {name: self._values[name] for name in NAMES}

    def faults(self) -> dict[str, int]:
        """Attempts that failed by kind, the most frequent first."""
        with self._lock:
            return dict(self._faults.most_common())

    def __str__(self) -> str:
        return sentence(self.values(), self.faults())


def sentence(values: dict[str, int], faults: dict[str, int]) -> str:
    """Counts in words; what did not happen is left out, but for requests."""
    text = f"{values[REQUESTS]:,} request{'s' * (values[REQUESTS] != 1)}, {decimal(values[BYTES])}"
    if values[REPEATED]:
        text += f"; {values[REPEATED]:,} had to be repeated"
    if faults:
        text += f" ({', '.join(f'{number:,} x {kind}' for kind, number in faults.items())})"
    if asked := values[HITS] + values[MISSES]:
        text += f"; {values[HITS]:,} of {asked:,} tiles from the cache"
    for name, words in (
        (DAMAGED, "damaged entries of the cache dropped"),
        (NOT_KEPT, "tiles that the cache could not keep"),
        (RENEWED, "tiles with a wrong checksum read again"),
    ):
        if values[name]:
            text += f"; {values[name]:,} {words}"
    return text

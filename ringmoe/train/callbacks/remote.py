"""What reading shards over a network costs the run."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringmoe.data.remote.counts import NAMES, sentence
from ringmoe.data.remote.folder import RemoteFolder
from ringmoe.distributed.collectives import gather_json
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

PREFIX = "remote/"


class RemoteReading(Callback):
    """Records what all ranks together asked for between two flushes of the metrics, for each step of them.

    ``remote/requests``, ``remote/repeated``, ``remote/bytes``, ``remote/cache_hits`` and the other counts of
    ``ringmoe.data.remote.counts``. Reading goes ahead of the steps: a step is charged with what was read during it. At
    the end the sums are said.

    Args:
        folders: What is read over a network.
    """

    def __init__(self, folders: Sequence[RemoteFolder]) -> None:
        self._folders = folders
        self._before: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()

    def before_flush(self, trainer: "Trainer") -> None:
        """Records what has been added since the last time."""
        now: Counter[str] = Counter()
        for folder in self._folders:
            now.update(folder.counts.values())
        for name in NAMES:
            trainer.metrics.record_all(PREFIX + name, (now[name] - self._before[name]) / len(trainer.recent), "sum")
        self._before = now

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Adds up what all ranks have recorded."""
        for name in NAMES:
            self._sums[name] += round(sum(row.scalars[PREFIX + name] for row in rows))

    def finish(self, trainer: "Trainer") -> None:
        """Says what it was in all, and what failed on any rank."""
        faults: Counter[str] = Counter()
        for found in gather_json([folder.counts.faults() for folder in self._folders]):
            for kinds in found:
                faults.update(kinds)
        places = ", ".join(map(str, self._folders))
        trainer.say(f"read from {places}, all ranks: {sentence(self._sums, dict(faults.most_common()))}")

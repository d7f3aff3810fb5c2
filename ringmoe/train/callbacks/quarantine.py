"""Tiles that could not be read: each is named, all are counted, and too many stop the run."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringmoe.distributed.collectives import gather_json
from ringmoe.errors import ShardError
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

FILE_NAME = "quarantine.json"
SUBSTITUTED = "substituted/"


class Quarantine(Callback):
    """Keeps the book of the training tiles: ``written = read + quarantined + not yet come to``, for each modality.

    A tile is quarantined once it was not what was written when its turn came; another one of its folder was read then,
    see ``ringmoe.data.substitute``. Rows get ``tiles_read/<modality>`` and ``tiles_quarantined/<modality>``, each tile
    counted once, beside ``substituted/<modality>``, the images of the step that stood in for others. The run's folder
    has ``quarantine.json``: name, reason and first step of each. All of it is part of every checkpoint.

    Args:
        folder: The run's folder.
        tolerance: Share of a modality's tiles that may be quarantined.
    """

    def __init__(self, folder: Path, tolerance: float) -> None:
        self._path = folder / FILE_NAME
        self._tolerance = tolerance
        self._tiles: dict[str, dict[str, dict[str, Any]]] = {}

    def start(self, trainer: "Trainer") -> None:
        """Brings the file to where the checkpoint is."""
        self._write(trainer)

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Takes in what any rank could not read.

        Raises:
            ShardError: More tiles of a modality are bad than may be.
        """
        if any(row.scalars[SUBSTITUTED + key] for row in rows for key in trainer.loader.num_samples):
            found = [tile for tiles in gather_json(list(_local(trainer, rows))) for tile in tiles]
            new = [tile for tile in sorted(found) if self._add(*tile)]
            self._say(trainer, new)
            self._write(trainer)
        self._count(trainer, rows)
        for key, num_written in trainer.loader.num_samples.items():
            num_bad = len(self._tiles.get(key, ()))
            if num_bad > self._tolerance * num_written:
                raise ShardError(
                    f"{num_bad:,} of the {num_written:,} tiles of {key} are not what was written, more than the share "
                    f"of {self._tolerance:g} that may be (--data.bad-tiles). {self._path} names them; `ringmoe shards "
                    "verify` checks the whole folder. Copy it again, or build the shards again; the same command then "
                    "continues from the last checkpoint"
                )

    def finish(self, trainer: "Trainer") -> None:
        """Says what became of all tiles."""
        parts = []
        for key, num_met in trainer.loader.num_met(trainer.step).items():
            num_written, num_bad = trainer.loader.num_samples[key], len(self._tiles.get(key, ()))
            counts = {"read": num_met - num_bad, "quarantined": num_bad, "not come to": num_written - num_met}
            parts.append(f"{key} {num_written:,} = " + " + ".join(f"{n:,} {name}" for name, n in counts.items() if n))
        trainer.say(f"tiles: {'; '.join(parts)}" + (f" ({self._path} says why)" if any(self._tiles.values()) else ""))

    def state(self) -> dict[str, Any]:
        """The tiles."""
        return {"tiles": self._tiles}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self._tiles = state.get("tiles", {})

    def _add(self, step: int, modality: str, name: str, reason: str) -> bool:
        """Enters a tile; False where it is in the book already."""
        tiles = self._tiles.setdefault(modality, {})
        return tiles.setdefault(name, entry := {"step": step, "reason": reason}) is entry

    def _say(self, trainer: "Trainer", new: Sequence[tuple[int, str, str, str]]) -> None:
        if new:
            _, _, name, reason = new[0]
            more = f" And {len(new) - 1} more." if len(new) > 1 else ""
            trainer.say(f"quarantined, others are read instead: {name}: {reason}.{more} All are listed in {self._path}")

    def _write(self, trainer: "Trainer") -> None:
        """Brings the file up to date; that it cannot be written ends no run, as checkpoints hold its contents."""
        if trainer.is_main and (any(self._tiles.values()) or self._path.exists()):
            new = self._path.with_name(f"{FILE_NAME}.tmp")
            try:
                new.write_text(json.dumps(self._tiles, indent=1) + "\n", encoding="utf-8")
                new.replace(self._path)
            except OSError as error:
                trainer.say(f"{self._path} could not be written, the next checkpoint holds what it would say: {error}")

    def _count(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        for row in rows:
            for key, num_met in trainer.loader.num_met(row.step).items():
                num_bad = sum(tile["step"] <= row.step for tile in self._tiles.get(key, {}).values())
                row.scalars[f"tiles_quarantined/{key}"] = num_bad
                row.scalars[f"tiles_read/{key}"] = num_met - num_bad


def _local(trainer: "Trainer", rows: Sequence[Row]) -> Iterator[tuple[int, str, str, str]]:
    """Step, modality, name and reason of what this rank could not read."""
    for row, micro_batches in zip(rows, trainer.recent, strict=True):
        for micro_batch in micro_batches:
            yield from ((row.step, *tile) for tile in micro_batch.bad)

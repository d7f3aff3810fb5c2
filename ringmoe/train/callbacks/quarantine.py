"""Tiles that could not be read: each is named, all are counted, and too many stop the run."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringmoe.data.passed import Missed
from ringmoe.distributed.collectives import gather_json
from ringmoe.errors import ShardError
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

FILE_NAME = "quarantine.json"
PASSED_FILE = "passed_over.json"
SUBSTITUTED = "substituted/"


class Quarantine(Callback):
    """Keeps the book of the training tiles: ``written = read + quarantined + not yet come to``, for each modality.

    A tile is quarantined once it was not what was written when its turn came; another one of its folder was read then,
    see ``ringmoe.data.substitute``. Rows get ``tiles_read/<modality>`` and ``tiles_quarantined/<modality>``, each tile
    counted once, beside ``substituted/<modality>``, the images of the step that stood in for others. The run's folder
    has ``quarantine.json``: name, reason and first step of each, counted in steps of data, which are those of the run
    until it goes back. All of it is part of every checkpoint.

    Where a run went back and passed over data, the tiles that it has thereby not read are a share of their own,
    ``tiles_passed_over/<modality>``, until a later epoch brings them; ``passed_over.json`` names all images whose turn
    was passed over.

    Args:
        folder: The run's folder.
        tolerance: Share of a modality's tiles that may be quarantined.
    """

    def __init__(self, folder: Path, tolerance: float) -> None:
        self._path = folder / FILE_NAME
        self._tolerance = tolerance
        self._tiles: dict[str, dict[str, dict[str, Any]]] = {}
        self._missed: Missed | None = None

    def start(self, trainer: "Trainer") -> None:
        """Brings the files to where the checkpoint is."""
        self._write(trainer)
        self._pass_over(trainer)

    def went_back(self, trainer: "Trainer") -> None:
        """Books what is passed over; tiles that turned out to be bad meanwhile still are."""
        self._pass_over(trainer)

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
        missed = self._missed.counts if self._missed else {}
        for key, num_met in trainer.loader.num_met(trainer.step + trainer.num_passed).items():
            num_written, num_bad = trainer.loader.num_samples[key], len(self._tiles.get(key, ()))
            num_missed = missed.get(key, 0)
            counts = {"read": num_met - num_bad - num_missed, "quarantined": num_bad, "passed over": num_missed}
            counts["not come to"] = num_written - num_met
            parts.append(f"{key} {num_written:,} = " + " + ".join(f"{n:,} {name}" for name, n in counts.items() if n))
        trainer.say(f"tiles: {'; '.join(parts)}" + (f" ({self._path} says why)" if any(self._tiles.values()) else ""))

    def state(self) -> dict[str, Any]:
        """The tiles."""
        return {"tiles": self._tiles}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        for modality, tiles in state.get("tiles", {}).items():
            self._tiles.setdefault(modality, {}).update(tiles)

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
        if any(self._tiles.values()) or self._path.exists():
            self._keep(trainer, self._path, self._tiles)

    def _keep(self, trainer: "Trainer", path: Path, content: object) -> None:
        if not trainer.is_main:
            return
        new = path.with_name(f"{path.name}.tmp")
        try:
            new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            new.replace(path)
        except OSError as error:
            trainer.say(f"{path} could not be written, the next checkpoint holds what it would say: {error}")

    def _count(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        for row in rows:
            step = row.step + trainer.num_passed
            missed: dict[str, int] = {}
            if self._missed is not None:
                self._missed.read(range(step - 1, step))
                missed = self._missed.counts
                row.scalars |= {f"tiles_passed_over/{key}": number for key, number in missed.items()}
            for key, num_met in trainer.loader.num_met(step).items():
                num_bad = sum(tile["step"] <= step for tile in self._tiles.get(key, {}).values())
                row.scalars[f"tiles_quarantined/{key}"] = num_bad
                row.scalars[f"tiles_read/{key}"] = num_met - num_bad - missed.get(key, 0)

    def _pass_over(self, trainer: "Trainer") -> None:
        """Finds the tiles that are missed where the run stands now, and names all images that were passed over."""
        if not trainer.passed:
            return
        self._missed, done, told = Missed(trainer.loader), 0, []
        for first, end in trainer.passed:
            known = {
                key: {name for name, tile in tiles.items() if first < tile["step"] <= end}
                for key, tiles in self._tiles.items()
            }
            self._missed.read(range(done, first))
            self._missed.pass_over(range(first, end), known)
            done = end
            told.append({"steps of data": [first + 1, end], "images": _names(trainer, range(first, end))})
        self._missed.read(range(done, trainer.step + trainer.num_passed))
        self._keep(trainer, self._path.with_name(PASSED_FILE), told)


def _names(trainer: "Trainer", steps: range) -> dict[str, list[str]]:
    """Of each modality the images whose turn comes in some steps of data."""
    loader = trainer.loader
    return {key: loader.names(key, loader.turns(key, steps)[1]) for key in loader.num_samples}


def _local(trainer: "Trainer", rows: Sequence[Row]) -> Iterator[tuple[int, str, str, str]]:
    """Step, modality, name and reason of what this rank could not read."""
    for row, micro_batches in zip(rows, trainer.recent, strict=True):
        for micro_batch in micro_batches:
            yield from ((row.step + trainer.num_passed, *tile) for tile in micro_batch.bad)

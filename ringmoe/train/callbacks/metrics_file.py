"""``metrics.jsonl``: one line of JSON for each step and for each evaluation, for curves and for tests."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

FILE_NAME = "metrics.jsonl"


class MetricsFile(Callback):
    """Writes the scalars of all rows; a resumed run first drops the rows that lie after its checkpoint.

    What is not finite is ``null``, as JSON has no such numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._file: IO[str] | None = None

    def start(self, trainer: "Trainer") -> None:
        """Cuts the file back to the step of the checkpoint and opens it."""
        if trainer.is_main:
            self.open(trainer.step)

    def went_back(self, trainer: "Trainer") -> None:
        """Cuts it back once more."""
        self.close()
        self.start(trainer)

    def on_rows(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Appends the rows."""
        if trainer.is_main:
            self.write(rows)

    def open(self, step: int) -> None:
        """Opens the file for what comes after ``step``."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_after(step)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, rows: Sequence[Row]) -> None:
        """Appends the rows and hands them to the operating system."""
        if self._file is not None:
            self._file.writelines(_line(row) for row in rows)
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _cut_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = self._path.with_name(f"{FILE_NAME}.tmp")
        with self._path.open(encoding="utf-8") as old, kept.open("w", encoding="utf-8") as new:
            for line in old:
                # a run that was killed may have left half a line at the end
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    new.write(line)
        kept.replace(self._path)


def _line(row: Row) -> str:
    scalars = {name: value if math.isfinite(value) else None for name, value in row.scalars.items()}
    return json.dumps({"step": row.step, **scalars}, allow_nan=False) + "\n"

"""Saving while training waits, or beside it: then only the copy of this rank's share into host memory is waited for."""

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ringmoe.checkpoint.ranks import rank
from ringmoe.checkpoint.runs import Kept
from ringmoe.checkpoint.save import files_of, save_checkpoint, write_checkpoint
from ringmoe.checkpoint.state import Stateful, TrainerState
from ringmoe.config import to_dict
from ringmoe.naming import canonical_entries

_log = logging.getLogger(__name__)
_NOTICED = 1.0  # seconds of waiting for the save before that a person should know of


class Saver:
    """Saves a run, one checkpoint after the other. All ranks construct and use it together.

    What is saved beside training is copied first, so it is the run as it was at the call, whatever the next steps do.
    Files are written and the checkpoint appears in the same order as otherwise. A save that fails raises its error
    where the next one begins, or in ``wait``; ``has_failed`` tells of it before.

    Args:
        run: The run's folder.
        kept: Which checkpoints stay.
        beside: Write beside training, which takes the share's size in host memory for as long as it lasts.

    Attributes:
        kept: Which checkpoints stay when the next one is complete.
    """

    def __init__(self, run: Path, kept: Kept, *, beside: bool = False) -> None:
        self._run, self.kept, self._beside = run, kept, beside
        several = beside and dist.is_initialized() and dist.get_world_size() > 1
        # a group of its own: the ranks' writers agree while the ranks themselves compute
        self._group: Any = dist.new_group(backend="gloo") if several else None
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a save beside training has failed on this rank, and nobody has been told yet."""
        return self._error is not None

    def save(
        self,
        engine: Stateful,
        state: TrainerState,
        *,
        config: Mapping[str, Any],
        documents: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Saves the run, or begins to. Collective.

        Args:
            engine: Holds weights and moments.
            state: Where the run stands.
            config: Contents of ``config.json``.
            documents: Further JSON files by name.

        Raises:
            CheckpointError: This save failed, or the one before that was written beside training.
        """
        if not self._beside:
            save_checkpoint(self._run, engine, state, config=config, kept=self.kept, documents=documents)
            return
        begun = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - begun) > _NOTICED and rank() == 0:
            _log.warning("saving took longer than the steps since: training waited %.0f s for it", waited)
        files = copy.deepcopy(files_of(state, config, documents))
        share = list(engine.state_of(canonical_entries(engine.model)))
        topology, kept = to_dict(engine.topology), self.kept

        def write() -> None:
            tensors = _handed_over(share)
            write_checkpoint(self._run, state.step, tensors, files, topology, kept=kept, group=self._group)

        self._writer = threading.Thread(target=self._kept_in_mind, args=(write,), name="save", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Waits until what was begun is complete.

        Raises:
            CheckpointError: It failed; older checkpoints are as they were.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits until what was begun is complete; what goes wrong with it now is only said."""
        try:
            self.wait()
        except Exception as error:  # a run that ends well has waited before: this one ends with another error
            _log.warning("the last save failed: %s", error)

    def _kept_in_mind(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # whatever it is: the thread that trains raises it
            self._error = error


def _handed_over(share: list[Any]) -> Iterator[Any]:
    """The tensors one after the other, none of which is kept once it has been taken."""
    share.reverse()
    while share:
        yield share.pop()

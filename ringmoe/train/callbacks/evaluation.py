"""Held-out tiles reconstructed while the run goes on."""

from typing import TYPE_CHECKING

from ringmoe.data.loader import Loader
from ringmoe.train.callbacks.base import Periodic
from ringmoe.train.evaluate import evaluate
from ringmoe.train.metrics import Row
from ringmoe.train.run import EvaluationConfig

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


class Evaluation(Periodic):
    """Logs ``val/<modality>`` and ``val_ratio/<modality>``: the masked error, and its share of the baseline's.

    ``val_left_out/<modality>`` are the held-out tiles that are not what was written, where there are any.

    Args:
        every: Steps between evaluations; there is one more at the end.
        config: How tiles are judged.
        loader: Gives this rank's share of the held-out tiles.
    """

    def __init__(self, every: int, config: EvaluationConfig, loader: Loader) -> None:
        super().__init__(every)
        self._config = config
        self._loader = loader

    def close(self) -> None:
        """Closes the shards."""
        self._loader.close()

    def act(self, trainer: "Trainer") -> None:
        """Evaluates the model as it is."""
        trainer.flush()
        config = self._config
        results = evaluate(
            trainer.model,
            self._loader,
            device=trainer.world.device,
            masks=config.masks,
            batch=config.batch,
            tiles=config.tiles,
        )
        row = Row(trainer.step, {f"val/{key}": result.model for key, result in results.items()})
        row.scalars |= {f"val_ratio/{key}": result.ratio for key, result in results.items()}
        row.scalars |= {f"val_left_out/{key}": result.num_bad for key, result in results.items() if result.num_bad}
        trainer.log([row])
        for key, result in results.items():
            if result.num_bad:
                trainer.say(
                    f"{result.num_bad} of {result.num_bad + result.num_tiles} held-out tiles of {key} are not what was "
                    "written and were left out; `ringmoe shards verify` names them"
                )

"""How fast the run is, how much of the machine it uses, and where the time of its steps goes."""

from typing import TYPE_CHECKING

import torch

from ringmoe.clock import REST
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.peak import Peak, measure_peak

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

PARTS = ("data", "forward", "exchange", "backward", "optimiser", REST)


class Speed(Callback):
    """Records the mean of the steps between two flushes of the metrics.

    * ``images_per_second``, ``tokens_per_second`` and ``seconds_per_step``;
    * ``seconds/<part>``: what the parts of a step take, which add up to ``seconds_per_step``. ``data`` is waiting for
      the loader and bringing its batch to the device; ``exchange`` is what no other work hides of the exchange of
      tokens, forward and backward, which ``forward`` and ``backward`` do not contain; gradients are reduced over ranks
      in ``backward`` and ``optimiser``;
    * ``data_wait``: ``data`` as a share of the step, on the rank that waits most;
    * ``mfu``: the model's operations (``RingMoEConfig.training_flops``) as a share of what the rank could have done in
      that time (``measure_peak``). Operations of recomputation do not count: it is the utilisation by the model, not
      that of the hardware; ``peak_tflops`` is what it is measured by.

    The clock stands from a flush to the next step: this is how fast training is, with its data and its own waiting, but
    without checkpoints, pictures and evaluations, which flush first.

    Args:
        images_per_step: Images of all modalities, micro-batches and ranks.
        tokens_per_step: Tokens of the first stage, likewise.
        flops_per_step: Operations of the model for them.
        dtype: Type of weights and activations, in which the peak is measured.
    """

    def __init__(self, *, images_per_step: int, tokens_per_step: int, flops_per_step: int, dtype: torch.dtype) -> None:
        self._images_per_step = images_per_step
        self._tokens_per_step = tokens_per_step
        self._flops_per_step = flops_per_step
        self._dtype = dtype
        self._peak = Peak(0.0, "not measured")

    def start(self, trainer: "Trainer") -> None:
        """Measures what the rank could do, and says so."""
        self._peak = measure_peak(trainer.world.device, self._dtype)
        trainer.say(f"MFU is measured by {self._peak.what}")

    def before_step(self, trainer: "Trainer") -> None:
        """Starts the clock at the first step after a flush."""
        if not trainer.clock.is_running:
            trainer.clock.start()

    def before_flush(self, trainer: "Trainer") -> None:
        """Stops the clock and records what it says."""
        num_steps, seconds = len(trainer.recent), trainer.clock.stop()
        record, total = trainer.metrics.record_all, sum(seconds.values()) / num_steps
        record("images_per_second", self._images_per_step / total, "mean")
        record("tokens_per_second", self._tokens_per_step / total, "mean")
        record("seconds_per_step", total, "mean")
        for part in PARTS:
            record(f"seconds/{part}", seconds.get(part, 0.0) / num_steps, "mean")
        record("data_wait", seconds.get("data", 0.0) / num_steps / total, "max")
        record("mfu", self._flops_per_step / trainer.world.size / total / self._peak.flops_per_second, "mean")
        record("peak_tflops", self._peak.flops_per_second / 1e12, "mean")

"""One optimiser step: forward and backward of each micro-batch, then the update."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ringmoe.batch import BadTile, Batch
from ringmoe.clock import Clock
from ringmoe.distributed.collectives import Reduction
from ringmoe.distributed.training_engine import TrainingEngine
from ringmoe.models.ringmoe.model import Output
from ringmoe.train.metrics import Metrics

# M modalities


class MicroBatch(NamedTuple):
    """What is remembered of a micro-batch until the metrics are flushed, to find the culprit of a fault.

    Attributes:
        loss_M: (M,) masked error of each modality on this rank.
        sample_ids: Names of its images by modality.
        bad: Tiles that could not be read; others are in their place.
    """

    loss_M: Tensor
    sample_ids: Mapping[str, Sequence[str]]
    bad: tuple[BadTile, ...] = ()


def train_step(
    engine: TrainingEngine, batches: Iterable[Batch], metrics: Metrics, device: torch.device, clock: Clock
) -> list[MicroBatch]:
    """Takes one optimiser step; it reads no number back from the device.

    Args:
        engine: The model and its optimiser, with the step's learning rate set.
        batches: The micro-batches of this rank, as many as the engine accumulates.
        metrics: Where losses, balance, routing and gradient norm are queued.
        device: Where the model is.
        clock: Told which part of the step is under way.

    Returns:
        What each micro-batch held.
    """
    seen = []
    for batch in batches:
        with clock.during("data"):
            inputs = batch.to(device)
        with clock.during("forward"):
            output: Output = engine.forward(inputs)
        with clock.during("backward"):
            engine.backward(_telling(output.loss))
        with clock.during("optimiser"):
            engine.step()
        for name, value, reduction in _terms(output, tuple(batch.images)):
            metrics.record(name, value, reduction)
        for key, images in batch.images.items():
            metrics.record(f"substituted/{key}", torch.tensor(float(len(images.bad))), "sum")
        ids = {key: images.sample_ids for key, images in batch.images.items()}
        bad = tuple(tile for images in batch.images.values() for tile in images.bad)
        seen.append(MicroBatch(output.recon_M.detach(), ids, bad))
    metrics.record("gradient_norm", engine.grad_norm, "last")
    return seen


def _telling(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, no gradient of it is, and every engine leaves out the step on all ranks."""
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)


def _terms(output: Output, modalities: tuple[str, ...]) -> Iterator[tuple[str, Tensor, Reduction]]:
    """Everything that is logged of a micro-batch, by name."""
    yield "loss", output.loss, "mean"
    for key, value in zip(modalities, output.recon_M, strict=True):
        yield f"loss/{key}", value, "mean"
    for key, value in zip(modalities, output.balance_specialised_M, strict=True):
        yield f"balance/{key}", value, "mean"
    yield "balance/collaborative", output.balance_collaborative, "mean"
    yield "routing_counts_LME", output.routing_counts_LME, "sum"
    yield "tokens_LM", output.tokens_LM, "sum"

"""How well held-out tiles are reconstructed, against predicting each tile's visible mean.

The baseline predicts, for every channel of a tile, the mean of what the mask left visible; it is judged on the same
masked pixels in the same normalised numbers. A model that has learnt something of its modality has a ratio below 1.
Where speckle is nearly all there is, as in single-look power, little below 1 can be had.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.batch import Batch, ModalityImages
from ringmoe.data.loader import Loader
from ringmoe.distributed.collectives import reduce_metrics
from ringmoe.errors import ShardError
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.models.ringmoe.objective import Reconstruction

# B images of one modality, T channels of the target, H x W pixels


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Result of one modality.

    Attributes:
        model: Mean squared error of the model on masked pixels.
        baseline: The same of predicting the tile's visible mean.
        num_tiles: Tiles that were judged.
        num_bad: Tiles that could not be read and were left out.
    """

    model: float
    baseline: float
    num_tiles: int
    num_bad: int = 0

    @property
    def ratio(self) -> float:
        """Error of the model as a share of the baseline's."""
        return self.model / self.baseline


@contextmanager
def evaluating(model: RingMoE) -> Iterator[None]:
    """Evaluation mode without gradients, and back to training where the model was training."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: RingMoE, loader: Loader, *, device: torch.device, masks: int, batch: int, tiles: int
) -> dict[str, HeldOut]:
    """Reconstructs held-out tiles under fixed masks. Collective: each rank takes its share, all get the result.

    Args:
        model: The model, with decoders.
        loader: Gives the tiles.
        device: Where the model is.
        masks: Masks for each tile.
        batch: Tiles of one forward pass.
        tiles: Most tiles of each modality.

    Returns:
        The result of each modality.

    Raises:
        ShardError: No tile of a modality can be read.
    """
    sums = {key: torch.zeros(4, dtype=torch.float64, device=device) for key in loader.num_samples}
    with evaluating(model):
        for images in loader.sequential(batch, at_most=tiles):
            for key, part in images.images.items():
                sums[key][3] += len(part.bad)
            for masked in _under_masks(images.to(device), masks):
                for key, reconstruction in model.reconstruct(masked if images.num_images else _blank(masked)).items():
                    errors_2B = torch.stack(tile_errors(reconstruction)).double()[:, : images.num_images]
                    ones_1B = torch.ones_like(errors_2B[:1])
                    sums[key][:3] += torch.cat((errors_2B, ones_1B)).sum(1)
    totals = reduce_metrics({key: (values, "sum") for key, values in sums.items()})
    results = {}
    for key, total in totals.items():
        model_sum, baseline_sum, count, num_bad = total.tolist()
        if not count:
            raise ShardError(f"none of the {num_bad:.0f} held-out tiles of {key} can be read: `ringmoe shards verify`")
        results[key] = HeldOut(
            model=model_sum / count,
            baseline=baseline_sum / count,
            num_tiles=round(count / masks),
            num_bad=round(num_bad),
        )
    return results


def tile_errors(images: Reconstruction) -> tuple[Tensor, Tensor]:
    """Mean squared error on the masked pixels of each tile, of the model and of the visible mean.

    Args:
        images: Reconstructions; channels that a tile does not have do not count.

    Returns:
        Two tensors (B,), float32.
    """
    target_BTHW, mask_B1HW = images.target_BTHW, images.mask_BHW[:, None]
    visible_B1HW = ~mask_B1HW
    mean_BT11 = (target_BTHW * visible_B1HW).sum((2, 3), keepdim=True) / visible_B1HW.sum((2, 3), keepdim=True)
    counted_BTHW = mask_B1HW & images.present_BT[:, :, None, None]

    def error(prediction_BTHW: Tensor) -> Tensor:
        squared_BTHW = torch.where(counted_BTHW, (prediction_BTHW.float() - target_BTHW).square(), 0)
        return squared_BTHW.sum((1, 2, 3)) / counted_BTHW.sum((1, 2, 3))

    return error(images.prediction_BTHW), error(mean_BT11)


def _blank(batch: Batch) -> Batch:
    """A tile of zeros for a rank that has none: the experts that it holds are asked for by the other ranks."""
    return Batch(
        {
            key: ModalityImages(
                images.pixels_BCHW.new_zeros(1, *images.pixels_BCHW.shape[1:]),
                images.present_BC.new_ones(1, *images.present_BC.shape[1:]),
                images.keys_B.new_zeros(1),
                (),
            )
            for key, images in batch.images.items()
        }
    )


def _under_masks(batch: Batch, masks: int) -> Iterator[Batch]:
    """The same images with other keys, hence under other masks."""
    for number in range(masks):
        yield Batch(
            {key: replace(images, keys_B=counter.mix(images.keys_B, number)) for key, images in batch.images.items()}
        )

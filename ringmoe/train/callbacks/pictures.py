"""Pictures of what the model makes of a few held-out tiles under a mask."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ringmoe import modality
from ringmoe.batch import Batch
from ringmoe.data.loader import Loader
from ringmoe.models.ringmoe.objective import Reconstruction
from ringmoe.report.canvas import save_png, to_rgb
from ringmoe.report.reconstruction import Panel, reconstruction_figure
from ringmoe.train.callbacks.base import Periodic
from ringmoe.train.evaluate import evaluating

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

_TILES = 4  # of each modality


class Pictures(Periodic):
    """Draws masked input, reconstruction and target of the same held-out tiles time and again.

    Args:
        every: Steps between pictures; there is one more at the end.
        loader: Gives the held-out tiles; the same ones on every rank, as experts may be spread over ranks.
        folder: Where pictures go.
    """

    def __init__(self, every: int, loader: Loader, folder: Path) -> None:
        super().__init__(every)
        self._loader = loader
        self._folder = folder

    def close(self) -> None:
        """Closes the shards."""
        self._loader.close()

    def act(self, trainer: "Trainer") -> None:
        """Draws the same tiles again."""
        trainer.flush()
        for batch in self._loader.sequential(_TILES, at_most=_TILES):
            with evaluating(trainer.model):
                reconstructions = trainer.model.reconstruct(batch.to(trainer.world.device))
            if trainer.is_main and batch.num_images:
                for key, images in reconstructions.items():
                    figure = reconstruction_figure(modality.get(key), panels_of(images, batch, key))
                    save_png(figure, self._folder / f"step-{trainer.step:08d}-{key}.png")
                    trainer.show(f"reconstruction/{key}", to_rgb(figure))


def panels_of(images: Reconstruction, batch: Batch, key: str) -> list[Panel]:
    """One row of the picture for each image of a modality."""
    spec = modality.get(key)
    step = spec.num_channels // len(spec.bands)  # channels of a band
    present_BN = batch.images[key].present_BC[:, ::step]
    panels = []
    for b in range(len(present_BN)):
        absent = tuple(band for band, present in zip(spec.bands, present_BN[b].tolist(), strict=True) if not present)
        prediction, target = (x[b].float().cpu().numpy() for x in (images.prediction_BTHW, images.target_BTHW))
        panels.append(Panel(target, prediction, np.asarray(images.mask_BHW[b].cpu()), absent))
    return panels

"""The quality masks that products bring along, on the grid of their scene."""

import numpy as np

from ringmoe.raster import source
from ringmoe.raster.scene import Pixels, Scene, UnusableError


def read_mask(scene: Scene, rows: range | None = None) -> Pixels:
    """Rows of a scene's quality mask; a coarser mask is repeated, never interpolated: its numbers are classes or bits.

    Args:
        scene: A scene of a product with a mask.
        rows: Rows of the scene; None for all.

    Returns:
        (H, W) of the mask's own type: classes (SCL), bits (QA_PIXEL), or 1 where it is clear (UDM2, its first band).

    Raises:
        UnusableError: There is no mask, its file is missing or damaged, or its pixels do not divide into the scene's.
    """
    mask = None if scene.product is None else scene.product.mask
    if mask is None:
        raise UnusableError("missing_part", f"{scene.name} has no quality mask")
    wanted = range(scene.height) if rows is None else rows
    with source.open_raster(scene.path / mask.file) as dataset:
        times = scene.height // dataset.height
        if (dataset.height * times, dataset.width * times) != (scene.height, scene.width):
            raise UnusableError(
                "conflict",
                f"{mask.file} has {dataset.height} x {dataset.width} pixels, which do not divide into the scene's "
                f"{scene.height} x {scene.width}",
            )
        first = wanted.start // times
        (coarse_HW,) = source.read_rows(dataset, [1], range(first, -(-wanted.stop // times)))
    fine_HW: Pixels = np.repeat(np.repeat(coarse_HW, times, axis=0), times, axis=1)
    return fine_HW[wanted.start - first * times :][: len(wanted)]

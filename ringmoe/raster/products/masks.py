"""The quality masks that products bring along, on the grid of their scene, and what their numbers say.

Cloud and its shadow, by the makers' documents:

- ``SCL`` (Sentinel-2 L2A scene classification, Level-2A ATBD, table of classes): 3 cloud shadow, 8 and 9 cloud of
  medium and high probability, 10 thin cirrus. 1 is a saturated or defective pixel.
- ``MSK_CLASSI`` (Sentinel-2 L1C classification mask since baseline 04.00, PSD-14): bands 1 opaque cloud, 2 cirrus and
  3 snow, each 1 where it is; no shadow.
- ``QA_PIXEL`` (Landsat Collection 2, LSDS-1619 and LSDS-1618): bits 1 dilated cloud, 2 cirrus, 3 cloud, 4 cloud shadow.
- ``UDM2`` (PlanetScope usable data mask): band 1 is 0 where the pixel is not clear of cloud, haze, shadow and snow.

``QA_RADSAT`` (Landsat) has a bit for each saturated band, bit 0 for band 1; those of bands 2 to 5 are looked at.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ringmoe.raster import source
from ringmoe.raster.quality import Marks
from ringmoe.raster.scene import Mask, Pixels, Scene, UnusableError, naming

# B bands of a mask, H rows, W columns

_DO_WITHOUT = "or read no masks (--max-cloud 1 --max-saturated 1)"

_CLOUD_CLASSES = {"SCL": (3, 8, 9, 10), "MSK_CLASSI": (1,), "UDM2": (0,)}
_CLOUD_BITS = {"QA_PIXEL": 0b11110}
_BANDS = {"MSK_CLASSI": (1, 2)}  # of the others the first
_SATURATED_CLASSES = {"SCL": (1,)}
_SATURATED_BITS = {"QA_RADSAT": 0b11110}


class OpenMask:
    """A mask that is open, so that its blocks are decoded once however many rows are read at a time."""

    def __init__(self, scene: Scene, mask: Mask, dataset: Any) -> None:
        """Checks that the mask fits the scene.

        Raises:
            UnusableError: Its pixels do not divide into the scene's, it holds no whole numbers, or lacks a band.
        """
        self._bands = _BANDS.get(mask.kind, (1,))
        if dataset.count < self._bands[-1]:
            raise UnusableError(
                "wrong_bands",
                f"the mask {mask.file} has {dataset.count} of the {self._bands[-1]} bands that say where clouds are: "
                f"fetch the product again, {_DO_WITHOUT}",
            )
        if np.dtype(dataset.dtypes[0]).kind not in "iu":
            raise UnusableError(
                "wrong_dtype",
                f"the mask {mask.file} holds {dataset.dtypes[0]}, expected whole numbers, which are its classes or "
                f"bits: fetch the product again, {_DO_WITHOUT}",
            )
        self.mask = mask
        self._dataset, self._path = dataset, scene.path / mask.file
        self._times = scene.height // dataset.height
        if (dataset.height * self._times, dataset.width * self._times) != (scene.height, scene.width):
            raise UnusableError(
                "conflict",
                f"{mask.file} has {dataset.height} x {dataset.width} pixels, which do not divide into the scene's "
                f"{scene.height} x {scene.width}",
            )

    def read(self, rows: range) -> Pixels:
        """Rows of the scene; a coarser mask is repeated, never interpolated: its numbers are classes or bits.

        Of several bands, each of which says where something is, the highest number counts.

        Raises:
            UnusableError: The mask is damaged.
        """
        try:
            values_BHW: Pixels = source.read_repeated(self._dataset, self._bands, rows, self._times)
        except source.ERRORS as error:
            said = source.reason(error, self._path)
            raise UnusableError(
                "unreadable",
                f"the mask {self.mask.file} is cut off or damaged ({said}): copy it again, {_DO_WITHOUT}",
            ) from error
        values_HW: Pixels = values_BHW.max(axis=0)
        return values_HW


@contextmanager
def open_mask(scene: Scene, mask: Mask) -> Iterator[OpenMask]:
    """Opens a mask of a scene.

    Raises:
        UnusableError: Its file is missing or damaged, or does not fit the scene (``OpenMask``).
    """
    path = scene.path / mask.file
    if not path.is_file():
        raise UnusableError("missing_part", f"its mask {mask.file} is missing: fetch the product again, {_DO_WITHOUT}")
    with ExitStack() as stack:
        with naming(mask.file):
            dataset = stack.enter_context(source.open_raster(path))
        yield OpenMask(scene, mask, dataset)


def read_mask(scene: Scene, rows: range | None = None) -> Pixels:
    """Rows of a scene's quality mask.

    Args:
        scene: A scene of a product with a mask.
        rows: Rows of the scene; None for all.

    Returns:
        (H, W) of the mask's own type: classes (SCL), bits (QA_PIXEL), 1 where it is clear (UDM2, its first band), or
        1 where it is not (MSK_CLASSI, its bands of clouds).

    Raises:
        UnusableError: There is no mask, or as of ``open_mask``.
    """
    mask = None if scene.product is None else scene.product.mask
    if mask is None:
        raise UnusableError("missing_part", f"{scene.name} has no quality mask")
    with open_mask(scene, mask) as opened:
        return opened.read(range(scene.height) if rows is None else rows)


class MaskReader:
    """The masks of one scene that say something of clouds or saturation."""

    def __init__(self, masks: list[OpenMask]) -> None:
        """Takes open masks."""
        self._masks = masks

    def read(self, rows: range) -> Marks:
        """What they say of some rows; each mask is read once.

        Raises:
            UnusableError: A mask is damaged.
        """
        cloud_HW, saturated_HW = None, None
        for opened in self._masks:
            values_HW = opened.read(rows)
            kind = opened.mask.kind
            cloud_HW = _either(cloud_HW, _marked(values_HW, _CLOUD_CLASSES.get(kind), _CLOUD_BITS.get(kind)))
            saturated_HW = _either(
                saturated_HW, _marked(values_HW, _SATURATED_CLASSES.get(kind), _SATURATED_BITS.get(kind))
            )
        return Marks(cloud_HW, saturated_HW)


@contextmanager
def open_masks(scene: Scene, masks: Sequence[Mask]) -> Iterator[MaskReader]:
    """Opens masks of a scene; none have nothing to say.

    Raises:
        UnusableError: One is missing or damaged, or does not fit the scene.
    """
    with ExitStack() as stack:
        yield MaskReader([stack.enter_context(open_mask(scene, mask)) for mask in masks])


def _marked(values_HW: Pixels, classes: tuple[int, ...] | None, bits: int | None) -> Pixels | None:
    """Where a mask has one of these classes or bits; None where it has neither to give."""
    if classes is not None:
        return np.isin(values_HW, classes)
    return None if bits is None else (values_HW & values_HW.dtype.type(bits)) != 0


def _either(first: Pixels | None, second: Pixels | None) -> Pixels | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second

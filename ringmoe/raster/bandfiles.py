"""The files of a scene, open at once and read like one raster: each block of each file once."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.modality import ModalitySpec
from ringmoe.raster import source
from ringmoe.raster.calibration import CalibrationTable
from ringmoe.raster.scene import BandSource, Pixels, Scene, UnusableError, naming

# C channels, H rows, W columns of a strip


class BandFiles:
    """The open files of one scene.

    Attributes:
        block_rows: Rows of the highest block of all files that are as fine as the scene. Coarser files are small, and
            a block of theirs may be decoded twice.
    """

    def __init__(self, scene: Scene, datasets: dict[str, Any]) -> None:
        """Loads the calibration tables that the bands need."""
        self._scene = scene
        self._spec: ModalitySpec = registry.get(scene.modality)
        self._datasets = datasets
        tables = {band.table for band in scene.bands if band is not None and band.table is not None}
        self._tables = {name: CalibrationTable.load(scene.path / name, scene.width) for name in tables}
        repeats = _repeats(scene)
        self.block_rows = max(found.block_shapes[0][0] for name, found in datasets.items() if repeats[name] == 1)

    def read(self, rows: range, out_CHW: Pixels) -> None:
        """Reads rows of the scene's bands into its channels; those of absent bands become zero.

        Raises:
            UnusableError: The data is cut off or damaged.
        """
        if any(band is None for band in self._scene.bands):
            out_CHW[...] = 0
        for file, dataset in self._datasets.items():
            members = [
                (place, band) for place, band in enumerate(self._scene.bands) if band is not None and band.file == file
            ]
            try:
                self._read_file(dataset, members, rows, out_CHW)
            except source.ERRORS as error:
                why = source.reason(error, self._scene.path / file)
                with naming(file):
                    raise UnusableError(
                        "unreadable",
                        f"rows {rows.start} to {rows.stop - 1} cannot be read ({why}). The file is "
                        "cut off or damaged: copy it again from its source, or leave it out",
                    ) from error

    def _read_file(self, dataset: Any, members: Sequence[tuple[int, BandSource]], rows: range, out_CHW: Pixels) -> None:
        """Reads the bands that lie in one file; straight into their channels where nothing is done to the numbers."""
        places = [place for place, _ in members]
        follow_each_other = places == list(range(places[0], places[0] + len(places)))
        repeat = members[0][1].repeat
        as_stored = repeat == 1 and not self._spec.is_complex and not any(band.is_calibrated for _, band in members)
        if follow_each_other and as_stored:
            source.read_rows(
                dataset, [band.index for _, band in members], rows, out_CHW[places[0] : places[0] + len(places)]
            )
            return
        wanted = list(dict.fromkeys(i for _, band in members for i in (band.index, band.imaginary) if i is not None))
        read_BHW = dict(zip(wanted, source.read_repeated(dataset, wanted, rows, repeat), strict=True))
        for place, band in members:
            parts = [read_BHW[band.index]]
            if band.imaginary is not None:
                parts.append(read_BHW[band.imaginary])
            elif self._spec.is_complex:
                parts = [parts[0].real, parts[0].imag]
            for part, values_HW in enumerate(parts):
                out_CHW[place * len(parts) + part] = self._calibrated(band, rows, values_HW)

    def _calibrated(self, band: BandSource, rows: range, values_HW: Pixels) -> Pixels:
        """The numbers times the band's gain and divided by its table."""
        if not band.is_calibrated:
            return values_HW
        calibrated_HW: Pixels = values_HW * np.float32(band.gain)
        if band.table is not None:
            calibrated_HW = calibrated_HW / self._tables[band.table].at(rows)
        return calibrated_HW


def _repeats(scene: Scene) -> dict[str, int]:
    """How much coarser each file is than the scene."""
    return {band.file: band.repeat for band in scene.bands if band is not None}


@contextmanager
def open_scene(scene: Scene) -> Iterator[BandFiles]:
    """Opens all files of a scene.

    Raises:
        UnusableError: One cannot be opened or is not the one that was recognised.
    """
    names = dict.fromkeys(band.file for band in scene.bands if band is not None)
    with ExitStack() as stack:
        datasets: dict[str, Any] = {}
        for name in names:
            with naming(name):
                datasets[name] = stack.enter_context(source.open_raster(scene.path / name))
        repeats = _repeats(scene)
        for name, dataset in datasets.items():
            if (dataset.height * repeats[name], dataset.width * repeats[name]) != (scene.height, scene.width):
                raise UnusableError(
                    "conflict",
                    f"{name or 'it'} has {dataset.height} x {dataset.width} pixels now; recognise it again",
                )
        yield BandFiles(scene, datasets)

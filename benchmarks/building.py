"""How much sooner shards are built by two workers than by one.

    python benchmarks/building.py

Writes scenes (4 bands of uint16, deflate-compressed) into a temporary folder, and builds them into shards of 192 x 192
tiles at stride 64 with one worker and with two, in turns. Unlike the other families this one goes by the clock on the
wall, from the call of ``build`` to the manifest on the disk: cores that other work takes count against both.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import Contestant, Found, claim, collect, progress, take_turns
from rasterio.errors import NotGeoreferencedWarning
from tiler import write_scene

from ringmoe.data.build import build
from ringmoe.data.plan import BuildConfig

FAMILY = "Building"
_NUM_SCENES = 2
_SIDE = 2560  # rows and columns of the scenes
_CONFIG = BuildConfig(tiles_per_shard=128)
_ROUNDS = 3


def claims() -> Iterator[Found]:
    """All claims of the family."""
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as folder:
        scenes, out = Path(folder, "scenes"), Path(folder, "shards")
        for number in progress(range(_NUM_SCENES), FAMILY):
            write_scene(scenes / f"{number}.tif", _SIDE, "deflate")
        remove = partial(shutil.rmtree, out, ignore_errors=True)
        ways = {
            workers: Contestant(partial(build, [scenes], out, _CONFIG, workers=workers), lambda _: remove())
            for workers in (1, 2)
        }
        # the process that workers are forked from starts in the turn that does not count
        seconds = take_turns({str(workers): way for workers, way in ways.items()}, _ROUNDS, now=time.perf_counter)
        setting = f"{_NUM_SCENES} scenes of {_SIDE} x {_SIDE}, 4 bands of uint16, deflate, wall clock"
        yield claim("one worker / ours", setting, seconds["2"], seconds["1"], ">= 1.7")


if __name__ == "__main__":
    collect(claims())

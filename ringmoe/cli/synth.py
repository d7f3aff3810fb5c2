"""``ringmoe synth OUT``: synthetic scenes of all four modalities, with labels, a second date and a video.

``ringmoe synth archive OUT``: an archive of many sensors' products, with all that goes wrong in archives.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ringmoe.cli.console import console
from ringmoe.raster.synth import ArchiveSettings, SynthSettings, write_archive, write_scenes

T = TypeVar("T")


@dataclass(frozen=True)
class SynthConfig:
    """Seeded, co-registered synthetic scenes; the same settings write the same bytes.

    Attributes:
        out: Folder for the scenes. Made if missing; continued if it was made with the same settings.
        scenes: How many landscapes to draw.
        size: Height and width of each, pixels of one metre.
        seed: Another seed draws other landscapes.
    """

    out: tyro.conf.Positional[Path]
    scenes: int = 4
    size: int = 768
    seed: int = 0


def run(config: SynthConfig) -> None:
    """Writes the scenes that are not there yet and says what lies where.

    Raises:
        ConfigError: Impossible settings, or a folder that holds something else.
        SceneError: A file cannot be written.
    """
    settings = SynthSettings(seed=config.seed, scenes=config.scenes, size=config.size)
    done = _all_of(write_scenes(config.out, settings), "synthetic scenes", config.scenes)
    num_reused = sum(scene.reused for scene in done)
    num_bytes = sum(scene.num_bytes for scene in done)
    console.print(
        f"{len(done)} synthetic scenes in {config.out} ({len(done) - num_reused} written, {num_reused} reused; "
        f"{sum(scene.num_files for scene in done)} files, {num_bytes / 1e6:.0f} MB). README.txt there names each file.",
        markup=False,
        soft_wrap=True,
    )


@dataclass(frozen=True)
class ArchiveConfig:
    """A seeded archive of mixed products, some of them flawed; the same settings draw the same pixels.

    Attributes:
        out: Folder for the archive. Made if missing; continued if it was made with the same settings.
        scenes: How many acquisitions; radar products of two polarisations hold two scenes.
        size: Height and width of each, pixels.
        seed: Another seed draws other landscapes.
    """

    out: tyro.conf.Positional[Path]
    scenes: int = 200
    size: int = 384
    seed: int = 0


def archive(config: ArchiveConfig) -> None:
    """Writes what is not there yet of the archive and says what lies where.

    Raises:
        ConfigError: Impossible settings, or a folder that holds something else.
        SceneError: A file cannot be written.
    """
    settings = ArchiveSettings(seed=config.seed, scenes=config.scenes, size=config.size)
    done = _all_of(write_archive(config.out, settings), "acquisitions", config.scenes)
    num_reused = sum(shot.reused for shot in done)
    layouts = Counter(shot.layout for shot in done)
    flaws = Counter(shot.flaw for shot in done if shot.flaw)
    console.print(
        f"{len(done)} synthetic acquisitions in {config.out} ({len(done) - num_reused} written, {num_reused} reused; "
        f"{sum(shot.num_bytes for shot in done) / 1e6:.0f} MB). README.txt there says what lies where.",
        f"layouts: {', '.join(f'{num} {layout}' for layout, num in layouts.items())}",
        f"with a flaw: {', '.join(f'{num} {flaw}' for flaw, num in flaws.items()) or 'none'}",
        sep="\n",
        markup=False,
        soft_wrap=True,
    )


def _all_of(written: Iterable[T], words: str, num: int) -> list[T]:
    """Waits for all that is written, with a bar for as long as it takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        return list(progress.track(written, total=num, description=words))

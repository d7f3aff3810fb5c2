"""``ringmoe synth OUT``: synthetic scenes of all four modalities, with labels, a second date and a video."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ringmoe.cli.console import console
from ringmoe.raster.synth import SynthSettings, WrittenScene, write_scenes


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
    done: list[WrittenScene] = []
    columns = (TextColumn("synthetic scenes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=config.scenes)
        for scene in write_scenes(config.out, settings):
            done.append(scene)
            progress.advance(task)
    num_reused = sum(scene.reused for scene in done)
    num_bytes = sum(scene.num_bytes for scene in done)
    console.print(
        f"{len(done)} synthetic scenes in {config.out} ({len(done) - num_reused} written, {num_reused} reused; "
        f"{sum(scene.num_files for scene in done)} files, {num_bytes / 1e6:.0f} MB). README.txt there names each file.",
        markup=False,
        soft_wrap=True,
    )

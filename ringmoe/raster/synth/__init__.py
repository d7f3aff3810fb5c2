"""Synthetic scenes and archives: seeded landscapes seen by many sensors, with every label that tests and tasks need."""

from ringmoe.raster.synth.archive import ArchiveSettings, WrittenShot, write_archive
from ringmoe.raster.synth.write import SynthSettings, WrittenScene, write_scenes

__all__ = ["ArchiveSettings", "SynthSettings", "WrittenScene", "WrittenShot", "write_archive", "write_scenes"]

"""Synthetic scenes: seeded landscapes seen by four sensors, with every label that tests and tasks need."""

from ringmoe.raster.synth.write import SynthSettings, WrittenScene, write_scenes

__all__ = ["SynthSettings", "WrittenScene", "write_scenes"]

"""Errors for people: what was wrong, where, what was expected, and what to do.

Every error that a user can cause is one of these. The command lines print them without a traceback and end with
exit code 2; a traceback therefore always means a fault of ours.
"""


class RingMoEError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(RingMoEError, ValueError):
    """A setting is wrong, or two settings contradict each other."""


class SceneError(RingMoEError):
    """A raw scene cannot be used as what it was declared to be."""


class ShardError(RingMoEError):
    """A shard, manifest or index is missing, damaged or does not fit the run."""


class TileError(ShardError):
    """A tile is not there as it was written; the others of its folder may well be."""


class CheckpointError(RingMoEError):
    """A checkpoint is missing, incomplete, damaged or does not fit the run."""


class TeamError(RingMoEError):
    """A process of a job is gone, and the others cannot go on without it."""


class TrainingError(RingMoEError):
    """Training cannot go on: its numbers are no longer finite."""

"""Pictures of a run: expert load, reconstructions, curves. Pure functions from arrays to images."""

"""Pictures of a run (expert load, reconstructions, curves) and of the shards that it learns from."""

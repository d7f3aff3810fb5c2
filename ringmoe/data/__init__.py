"""Stage 2, tiles to shards to batches: build, manifest, order, reading, loader. The only importer of webdataset."""

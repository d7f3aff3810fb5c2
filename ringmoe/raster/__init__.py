"""Stage 1, raw scene to tiles: recognition, reading, tiling, quality rules, statistics. Only here is rasterio used."""

"""Blocks that models share: patch embedding, positions, window attention, the SwinV2 block, merging, pixel heads."""

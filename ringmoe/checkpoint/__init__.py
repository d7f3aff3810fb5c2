"""Checkpoints that no topology owns: save on any number of ranks, load on any other, by global names.

A checkpoint is a folder of safetensors files, JSON documents and a manifest with sizes and checksums that is written
last. It appears whole or not at all, damage is noticed and named, and nothing is ever unpickled.
"""

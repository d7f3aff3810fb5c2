"""Where things lie in a folder of shards, and what they are called. The format is described in ``shards/README.md``."""

import re
from collections.abc import Iterable
from typing import get_args

import numpy as np

from ringmoe.raster import tiling

Split = tiling.Split
SPLITS: tuple[Split, ...] = get_args(Split)

FORMAT = 2
MANIFEST = "manifest.json"
BUILDING = ".building"  # folder of an unfinished build, inside the folder of shards

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # where the tile's stored pixels begin in the shard's file, bytes
        ("length", "<u4"),  # how many bytes they take
        ("xxh3", "<u8"),  # checksum of these bytes
        ("scene", "<u4"),  # which of the modality's scenes the tile was cut from
        ("row", "<u4"),  # first row of the tile in the scene, pixels
        ("col", "<u4"),  # first column of the tile in the scene, pixels
        ("group", "<u2"),  # which of the modality's groups of equal sensor, units and type
    ]
)
"""One row for each sample of a modality and split, shard after shard in the order of the manifest."""

_LONGEST_SLUG = 60  # with row, column and suffix a member's name stays within the 100 bytes of a plain tar header


def shard_name(modality: str, split: Split, number: int) -> str:
    """File of a shard, relative to the folder."""
    return f"{modality}/{split}-{number:06d}.tar"


def index_name(modality: str, split: Split) -> str:
    """File of a member index, relative to the folder."""
    return f"{modality}/{split}.index.npy"


def statistics_name(modality: str) -> str:
    """File of the mergeable statistics of a modality, relative to the folder."""
    return f"{modality}/statistics.json"


def footprints_name(modality: str) -> str:
    """File of the corners of a modality's scenes, relative to the folder."""
    return f"{modality}/footprints.npy"


def examples_name(modality: str) -> str:
    """File of pictures of what the rules dropped of a modality, relative to the folder."""
    return f"{modality}/examples.npy"


def member_key(slug: str, row: int, col: int) -> str:
    """Key of a sample: its members are ``<key>.json`` and ``<key>.npy`` or ``.pco``. webdataset splits at the dot."""
    return f"{slug}_r{row:06d}_c{col:06d}"


def slugs(names: Iterable[str]) -> list[str]:
    """A short name for each scene, made of letters, digits, ``-`` and ``_``; no two are equal."""
    taken: set[str] = set()
    result = []
    for name in names:
        stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name)
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[-_LONGEST_SLUG:] or "scene"
        slug, number = plain, 2
        while slug.lower() in taken:
            slug, number = f"{plain}-{number}", number + 1
        taken.add(slug.lower())
        result.append(slug)
    return result

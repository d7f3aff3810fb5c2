"""What a manifest says of shards, groups, scenes and modalities, and of files that were not used."""

from dataclasses import dataclass

from ringmoe.data.codec import Codec
from ringmoe.data.examples import DroppedTile
from ringmoe.data.inputs import Group
from ringmoe.data.layout import Split
from ringmoe.data.storage import FileEntry
from ringmoe.modality import ModalitySpec


@dataclass(frozen=True, kw_only=True)
class ShardEntry(FileEntry):
    """A shard.

    Attributes:
        samples: Samples in it.
    """

    samples: int


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """The samples of a modality that train, or those that validate.

    Attributes:
        shards: Shards in the order in which samples are counted.
        index: Member index: one row of ``layout.INDEX_DTYPE`` for each sample.
    """

    shards: tuple[ShardEntry, ...]
    index: FileEntry

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class GroupEntry:
    """A group of tiles and how many there are.

    Attributes:
        group: What the tiles share, and the statistics of those that train.
        tiles: Tiles of each split.
    """

    group: Group
    tiles: dict[Split, int]


@dataclass(frozen=True, kw_only=True)
class SceneEntry:
    """A scene that tiles were cut from.

    Attributes:
        name: Relative name, the ``source`` of its tiles.
        slug: Short name, the beginning of its tiles' keys.
        digest: Changes when the file, or what is known of the scene, changes.
        synthetic: The pixels were drawn, not observed.
    """

    name: str
    slug: str
    digest: str
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class ExamplesEntry(FileEntry):
    """Pictures of a few windows that each rule dropped.

    Attributes:
        tiles: What each picture in the file shows.
    """

    tiles: tuple[DroppedTile, ...]


@dataclass(frozen=True, kw_only=True)
class ModalityEntry:
    """Everything of one modality.

    Attributes:
        spec: The modality.
        tile: Height and width of the tiles, pixels.
        codec: How their pixels are stored.
        scenes: All scenes, quarantined ones included; the index counts through them.
        candidates: Windows that were looked at: kept and dropped ones of all scenes that are not quarantined.
        dropped: Windows that each rule dropped.
        groups: Groups of equal sensor, units and type; the index counts through them.
        splits: Shards and index of each split that has samples.
        statistics: File with the mergeable state of the groups' statistics.
        footprints: File with the corners of each scene.
        examples: File with pictures of dropped windows.
    """

    spec: ModalitySpec
    tile: int
    codec: Codec = "raw"
    scenes: tuple[SceneEntry, ...]
    candidates: int
    dropped: dict[str, int]
    groups: tuple[GroupEntry, ...]
    splits: dict[Split, SplitEntry]
    statistics: FileEntry
    footprints: FileEntry
    examples: ExamplesEntry

    @property
    def num_kept(self) -> int:
        """Tiles in the shards."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def all_files(self) -> list[FileEntry]:
        """Every file of the modality."""
        beside: list[FileEntry] = [self.statistics, self.footprints, self.examples]
        return beside + [file for entry in self.splits.values() for file in (*entry.shards, entry.index)]


@dataclass(frozen=True, kw_only=True)
class RefusedFile:
    """A file that was not used, or a scene that broke while it was read.

    Attributes:
        name: Relative name.
        code: Short word for counting.
        message: What was wrong and what to do.
    """

    name: str
    code: str
    message: str

"""What the page shows of a folder of either kind: shards of single tiles, or of grouped samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from ringmoe.report.inspect.histograms import GroupView
from ringmoe.report.inspect.maps import Footprint
from ringmoe.report.inspect.sheets import Sheet, Thumb


@dataclass(frozen=True, kw_only=True)
class Account:
    """What became of the windows of one modality, or of places of one kind.

    Attributes:
        key: The modality, or the members of the places.
        title: What a person calls it.
        scenes: Scenes that windows were cut from: those in quarantine are none of them.
        synthetic: Those of them that were drawn, not observed.
        candidates: Windows.
        kept: Those that are in shards, as the columns of the account are called.
        dropped: Windows that each rule dropped; all rules of all accounts.
    """

    key: str
    title: str
    scenes: int
    synthetic: int
    candidates: int
    kept: dict[str, int]
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Strips:
    """A few grouped samples, the tiles of each side by side.

    Attributes:
        title: The split.
        total: How many samples it has.
        strips: Those that are shown.
        fault: Why none is shown; empty where nothing is wrong.
    """

    title: str
    total: int
    strips: tuple[tuple[Thumb, ...], ...]
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is shown of one modality beside its account.

    Attributes:
        key: The modality.
        title: What a person calls it.
        sides: Height and width of its tiles in words, pixels.
        colours: How the colours of its pictures are to be read.
        kept: Sheets of kept tiles.
        dropped: Sheets of dropped ones.
        groups: Histograms and numbers of each group.
    """

    key: str
    title: str
    sides: str
    colours: str
    kept: Sequence[Sheet] = ()
    dropped: Sequence[Sheet] = ()
    groups: Sequence[GroupView]


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything that depends on the kind of folder.

    Attributes:
        noun: What windows are positions of: a scene or a place.
        splits: The columns of ``Account.kept``.
        accounts: One for each modality or kind of places.
        reasons: Rules that dropped windows.
        words: What each rule means.
        sections: One for each modality.
        strips: Grouped samples of each split.
        located: Scenes or places on the map.
        unplaced: Names of those of each account that are nowhere.
        places: What became of each place, in words.
        left_out: Tiles that samples do without, in words.
    """

    noun: str
    splits: tuple[str, ...]
    accounts: Sequence[Account]
    reasons: Sequence[str]
    words: dict[str, str]
    sections: Sequence[Section]
    strips: Sequence[Strips] = ()
    located: Sequence[Footprint]
    unplaced: dict[str, list[str]]
    places: Sequence[str] = ()
    left_out: Sequence[str] = ()

    @property
    def faults(self) -> list[str]:
        """What is wrong with tiles that could not be drawn."""
        of_sheets = [sheet.fault for section in self.sections for sheet in section.kept]
        return [fault for fault in (*of_sheets, *(strips.fault for strips in self.strips)) if fault]

    @property
    def total(self) -> Account:
        """All accounts together."""
        return Account(
            key="all",
            title="all",
            scenes=sum(account.scenes for account in self.accounts),
            synthetic=sum(account.synthetic for account in self.accounts),
            candidates=sum(account.candidates for account in self.accounts),
            kept={split: sum(account.kept[split] for account in self.accounts) for split in self.splits},
            dropped={reason: sum(account.dropped[reason] for account in self.accounts) for reason in self.reasons},
        )


NUM_MODALITY_COLOURS = 8
"""Colours of the page's style for modalities and kinds of places."""

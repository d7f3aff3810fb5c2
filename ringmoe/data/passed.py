"""Tiles that have not been read because the run passed over their turn."""

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from ringmoe.data.loader import Loader

_AT_ONCE = 1 << 18  # positions that are looked at together


class Missed:
    """Of each modality the samples that no turn has brought, since theirs was passed over and no later one came.

    Every sample has one turn in its first epoch, so one is missed from when that is passed over until another epoch
    brings it. It is a function of the loader and the steps alone, and alike on any ranks.

    Args:
        loader: Knows whose turn is when.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._samples: dict[str, Tensor] = {key: torch.empty(0, dtype=torch.int64) for key in loader.num_samples}

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each modality."""
        return {key: len(samples_N) for key, samples_N in self._samples.items()}

    def pass_over(self, steps: range, known: Mapping[str, Container[str]]) -> None:
        """Steps of data are passed over.

        Args:
            steps: Which.
            known: Names of samples of each modality that count as something else.
        """
        for key, missed_N in self._samples.items():
            for part in _parts(steps, self._loader.images_per_step[key]):
                epochs_N, samples_N = self._loader.turns(key, part)
                new_N = samples_N[epochs_N == 0]
                if names := known.get(key):
                    is_new = [name not in names for name in self._loader.names(key, new_N)]
                    new_N = new_N[torch.tensor(is_new, dtype=torch.bool)]
                missed_N = torch.cat((missed_N, new_N))
            self._samples[key] = missed_N

    def read(self, steps: range) -> None:
        """Steps of data are trained on."""
        for key, missed_N in self._samples.items():
            for part in _parts(steps, self._loader.images_per_step[key]):
                if not len(missed_N):
                    break
                missed_N = missed_N[~torch.isin(missed_N, self._loader.turns(key, part)[1])]
            self._samples[key] = missed_N


def _parts(steps: range, images: int) -> list[range]:
    """The steps in parts of not too many images."""
    length = max(1, _AT_ONCE // images)
    return [range(first, min(first + length, steps.stop)) for first in range(steps.start, steps.stop, length)]

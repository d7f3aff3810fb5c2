"""The table at the start of a run says what every data set's share comes to."""

import shutil
from contextlib import closing

import pytest
from rich.console import Console

from ringmoe.data.loader import DataConfig, Loader
from ringmoe.train.mixture import mixture_table


@pytest.fixture
def rows(shards, tmp_path):
    """The table's lines for a mixture of two folders with 15 tiles of each modality, 12 images a step."""
    other = shutil.copytree(shards, tmp_path / "other")

    def rows_of(steps, **options):
        config = DataConfig(shards=(shards, other), micro_batch=12, **options)
        with closing(Loader(config, modalities=("opt", "sar_l2"), image_size=16, seed=0)) as loader:
            console = Console(width=200)
            with console.capture() as capture:
                console.print(mixture_table(loader, steps))
        return [" ".join(line.split()) for line in capture.get().splitlines()]

    return rows_of


def test_pooled_folders_are_one_data_set(rows):
    lines = rows(10, quotas={"opt": 9, "sar_l2": 3})
    assert "opt shards and other 30 9 90 3 3 times" in lines
    assert "sar_l2 shards and other 30 3 30 1 once" in lines


def test_folders_with_shares_repeat_each_at_its_own_pace(rows):
    lines = rows(1000, set_weights=(3.0, 1.0))
    assert "opt shards 15 4.5 4,500 300 300 times" in lines
    assert "opt other 15 1.5 1,500 100 100 times" in lines
    assert rows(2, set_weights=(3.0, 1.0))[-2] == "sar_l2 other 15 1.5 3 0.2 at most once"
    assert rows(7, set_weights=(1.0, 1.0))[-2] == "sar_l2 other 15 3 21 1.4 1 or 2 times"


def test_folders_of_one_name_are_told_apart(shards, tmp_path):
    twin = shutil.copytree(shards, tmp_path / "elsewhere" / shards.name)
    config = DataConfig(shards=(shards, twin), micro_batch=4, set_temperature=1)
    with closing(Loader(config, modalities=("opt",), image_size=16, seed=0)) as loader:
        names = list(mixture_table(loader, 1).columns[1].cells)
    assert names == [str(shards), str(twin)]

"""Load statistics as a file, and Eq. 15 on numbers that can be checked by hand."""

import json

import pytest
import torch

from ringmoe.errors import ConfigError
from ringmoe.moe.usage import Usage

# two layers, two modalities, one specialised and three collaborative experts
COUNTS_LME = torch.tensor([[[8, 1, 2, 5], [4, 0, 0, 4]], [[8, 8, 0, 0], [4, 1, 1, 2]]], dtype=torch.float32)
TOKENS_LM = torch.tensor([[8, 4], [8, 4]], dtype=torch.float32)


def usage() -> Usage:
    return Usage.from_counts(COUNTS_LME, TOKENS_LM, modalities=("opt", "ms"), num_specialised=1, source="two batches")


def test_frequencies_are_shares_of_a_modalitys_tokens():
    assert usage().collaborative(0, "opt") == (1 / 8, 2 / 8, 5 / 8)
    assert usage().collaborative(1, "ms") == (1 / 4, 1 / 4, 2 / 4)
    assert usage().num_routed == 4


def test_a_file_brings_back_the_same(tmp_path):
    usage().save(tmp_path / "usage.json")
    assert Usage.load(tmp_path / "usage.json") == usage()


def test_asking_for_what_was_not_counted_is_an_error():
    with pytest.raises(ConfigError, match="counted for opt, ms, not for 'sar_l2'"):
        usage().collaborative(0, "sar_l2")
    empty = Usage.from_counts(
        COUNTS_LME * 0, TOKENS_LM * 0, modalities=("opt", "ms"), num_specialised=1, source="nothing"
    )
    with pytest.raises(ConfigError, match="layer 1 saw no token of 'ms'"):
        empty.collaborative(1, "ms")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": [[8, 4]]}, "2 layers of counts but 1 layers of tokens"),
        ({"modalities": ["opt"]}, "one row for each of opt"),
        ({"counts": [[[8, 1, 2, 5], [4, 0, 4]]] * 2}, "4 counts of 0 or more"),
        ({"counts": [[[8, 1, 2, -5], [4, 0, 0, 4]]] * 2}, "4 counts of 0 or more"),
        ({"counts": [], "tokens": []}, "0 layers"),
        ({"who": "?"}, "no setting 'who'"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, change, reason):
    path = tmp_path / "usage.json"
    path.write_text(json.dumps(usage().to_dict() | change))
    with pytest.raises(ConfigError, match=reason):
        Usage.load(path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_files_that_hold_something_else_are_refused(tmp_path, text):
    path = tmp_path / "usage.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"usage\.json"):
        Usage.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Usage.load(tmp_path / "nobody.json")

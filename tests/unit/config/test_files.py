"""Dataclasses to files and back, with errors that name the field."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ringmoe.config import from_dict, load_yaml, to_dict, to_yaml
from ringmoe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1e-4
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner = field(default_factory=Inner)
    kept: tuple[tuple[int, ...], ...] | None = None
    weights: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    pair: tuple[int, float] = (1, 2.0)


FULL = Outer(steps=3, inner=Inner(rate=2.0, kind="b"), kept=((0, 1), (2,)), weights={"opt": 1}, path=Path("x/y"))


def test_a_config_survives_yaml():
    assert from_dict(Outer, yaml.safe_load(to_yaml(FULL))) == FULL
    assert to_dict(FULL)["path"] == "x/y"


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert from_dict(Outer, yaml.safe_load("steps: 1\ninner: {rate: 1e-3}")).inner.rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nstep: 2", "did you mean 'steps'"),
        ("steps: many", "steps is 'many'.*expected int"),
        ("steps: true", "steps is True.*expected int"),
        ("steps: 1\ninner: {kind: c}", r"inner\.kind is 'c'; it may be 'a', 'b'"),
        ("steps: 1\ninner: 3", "expected a mapping with rate, kind"),
        ("steps: 1\nkept: [[0], [x]]", r"kept\[1\]\[0\] is 'x'"),
        ("steps: 1\npair: [1]", "has 1 values; expected 2"),
        ("steps: 1\nweights: [1]", "expected a mapping"),
        ("inner: {}", "steps"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_may_be(text, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, yaml.safe_load(text))


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path / "none.yaml")


@dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    size: int
    is_new: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    records: tuple[Record, ...]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "a", "size": True, "is_new": False}, r"records\[1\]\.size is True"),
        ({"name": "a", "size": "3", "is_new": False}, r"records\[1\]\.size is '3'"),
        ({"name": "a", "sise": 3, "is_new": False}, r"records\[1\]: no setting 'sise'; did you mean 'size'"),
        ({"name": "a"}, r"records\[1\].*size"),
        ("a", r"records\[1\] is 'a'; expected a mapping"),
    ],
)
def test_many_records_are_checked_one_by_one(record, message):
    good = {"name": "g", "size": 1, "is_new": True}
    expected = (Record(name="g", size=1, is_new=True), Record(name="h", size=2))
    assert from_dict(Table, {"records": [good, {"size": 2, "name": "h"}]}).records == expected
    with pytest.raises(ConfigError, match=message):
        from_dict(Table, {"records": [good, record]})

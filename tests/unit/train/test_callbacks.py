"""What callbacks write and say; their part in a whole run is in tests/end_to_end."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringmoe.train.callbacks.metrics_file import FILE_NAME, MetricsFile
from ringmoe.train.callbacks.progress import describe
from ringmoe.train.callbacks.quarantine import Quarantine
from ringmoe.train.metrics import Row


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    return path


def test_rows_after_the_checkpoint_and_half_lines_are_dropped(lines: Path):
    file = MetricsFile(lines.parent)
    file.open(2)
    file.write([Row(3, {"loss": 0.5})])
    file.close()
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}]
    assert [path.name for path in lines.parent.iterdir()] == [FILE_NAME]


def test_a_number_that_is_not_finite_is_null(tmp_path):
    file = MetricsFile(tmp_path)
    file.open(0)
    file.write([Row(1, {"loss": math.nan, "gradient_norm": math.inf, "lr": 0.5})])
    file.close()
    text = (tmp_path / FILE_NAME).read_text()
    assert text == '{"step": 1, "loss": null, "gradient_norm": null, "lr": 0.5}\n'


def test_a_list_of_bad_tiles_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "quarantine.json.tmp").mkdir()
    callback, said = Quarantine(tmp_path, 0.01), []
    callback.load_state({"tiles": {"opt": {"a": {"step": 1, "reason": "cut off"}}}})
    callback.start(SimpleNamespace(is_main=True, say=said.append, passed=[]))
    assert "quarantine.json could not be written" in said[0]


def test_the_line_of_steps_shows_their_mean_and_the_last_rate():
    timed = {"images_per_second": 99.6, "mfu": 0.314, "data_wait": 0.009}
    rows = [Row(step, {"loss": 2.0 * step, "loss/opt": 1.0 * step, "lr": 1e-3 * step, **timed}) for step in (1, 2)]
    assert describe(rows) == "loss 3 (opt 1.5)  lr 2.0e-03  100 images/s  MFU 31%"


def test_waiting_for_data_is_mentioned_where_it_is_over_one_percent():
    timed = {"images_per_second": 1234.5, "mfu": 0.314, "data_wait": 0.123}
    losses = {"loss": 3.23456, **{f"loss/{key}": 0.812345 for key in ("opt", "ms", "sar_l1", "sar_l2")}}
    line = describe([Row(1000, losses | {"lr": 5e-4} | timed)])
    assert line.endswith("1234 images/s  MFU 31%  data 12%")


def test_the_line_of_an_evaluation_shows_the_ratios():
    row = Row(5, {"val/opt": 0.4, "val_ratio/opt": 0.81234, "val_ratio/ms": 1.0})
    assert describe([row]) == "held out, share of the visible mean's error: opt 0.812 ms 1"

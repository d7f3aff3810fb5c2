"""Figures: the numbers behind them, and that they are pictures of something."""

import json

import numpy as np
import pytest

from ringmoe import modality
from ringmoe.errors import ConfigError
from ringmoe.report.canvas import save_png, to_rgb
from ringmoe.report.curves import curves_figure, read_rows, series
from ringmoe.report.expert_load import expert_load_figure, relative_load
from ringmoe.report.reconstruction import Panel, display_image, reconstruction_figure


def test_load_is_relative_to_the_fair_share_of_each_family():
    counts_LME = np.array([[[30, 10, 0, 0, 5, 15]]])  # four specialised experts, two collaborative ones
    assert relative_load(counts_LME, 4)[0, 0].tolist() == [3.0, 1.0, 0.0, 0.0, 0.5, 1.5]


def test_a_family_without_tokens_has_no_load():
    load = relative_load(np.array([[[0, 0, 4, 4]]]), 2)
    assert np.isnan(load[0, 0, :2]).all()
    assert load[0, 0, 2:].tolist() == [1.0, 1.0]


def test_the_load_picture_shows_the_imbalance():
    even = to_rgb(expert_load_figure(np.full((3, 2, 8), 10), ["opt", "ms"], num_specialised=4))
    skewed_LME = np.full((3, 2, 8), 10)
    skewed_LME[1, 0, 2] = 40
    skewed = to_rgb(expert_load_figure(skewed_LME, ["opt", "ms"], num_specialised=4))
    assert even.shape == skewed.shape
    assert even.dtype == np.uint8
    assert (even != skewed).any()


def test_pixels_are_shown_through_the_display_bands():
    rng = np.random.default_rng(0)
    target_CHW = rng.normal(size=(4, 32, 32)) * np.array([1, 5, 9, 2])[:, None, None]
    picture = display_image(target_CHW, target_CHW, modality.MS)
    low, high = np.percentile(target_CHW[2], [1, 99])  # R stands third in B, G, R, NIR and is shown first
    assert picture.shape == (32, 32, 3)
    assert np.allclose(picture[..., 0], np.clip((target_CHW[2] - low) / (high - low), 0, 1))


def test_power_is_shown_in_decibels():
    power_1HW = np.array([[[0.1, 1.0, 10.0]]])
    picture = display_image(power_1HW, power_1HW, modality.SAR_L1)
    assert picture[0, 1, 0] == pytest.approx(0.5)  # 0 dB, half-way between -10 and 10 dB
    assert np.isfinite(display_image(power_1HW, -power_1HW, modality.SAR_L1)).all()


@pytest.mark.parametrize("key", ["opt", "ms", "sar_l1", "sar_l2"])
def test_a_reconstruction_picture_can_be_drawn_for_every_modality(key, tmp_path):
    spec = modality.get(key)
    rng = np.random.default_rng(1)
    shape = (spec.num_target_channels, 32, 32)
    panel = Panel(rng.random(shape), rng.random(shape), rng.random((32, 32)) < 0.5, absent=spec.bands[1:])
    save_png(reconstruction_figure(spec, [panel, panel]), tmp_path / "deep" / "picture.png")
    assert (tmp_path / "deep" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["picture.png"]


def test_curves_come_from_the_rows_of_a_run(tmp_path):
    rows = [{"step": step, "loss/opt": 1.0 / step, "lr": 1e-3, "gradient_norm": 1.0} for step in range(1, 130)]
    rows.append({"step": 129, "val_ratio/opt": 0.8})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(path)
    assert series(read, "val_ratio/opt") == ([129], [0.8])
    assert to_rgb(curves_figure(read, title="a run")).std() > 0


@pytest.mark.parametrize("num_finite", [100, 1, 0])
def test_numbers_that_were_not_finite_are_gaps(tmp_path, num_finite):
    rows = [{"step": step, "loss/opt": 1.0 if step <= num_finite else None, "lr": 1e-3} for step in range(1, 130)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(path)
    assert np.isfinite(series(read, "loss/opt")[1]).sum() == num_finite
    raw, *smooth = curves_figure(read).axes[0].lines
    assert len(raw.get_xdata()) == 129
    assert len(smooth) == (num_finite > 0)
    assert all(np.isfinite(line.get_ydata()).all() for line in smooth)


def test_missing_or_damaged_curves_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: no curves to read"):
        read_rows(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="one JSON object a line"):
        read_rows(tmp_path / "metrics.jsonl")

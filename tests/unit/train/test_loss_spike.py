"""When a loss is called a spike."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from ringmoe.errors import ConfigError
from ringmoe.train.callbacks.loss_spike import LossSpike
from ringmoe.train.metrics import Row
from ringmoe.train.run import NumbersConfig


def look(watch: LossSpike, losses: list[float], first: int = 1) -> SimpleNamespace:
    """What a trainer sees of it."""
    said: list[str] = []
    trainer = SimpleNamespace(say=said.append, said=said, passed=[], wants_back=0, doubt="")
    trainer.rows = [Row(first + number, {"loss": loss}) for number, loss in enumerate(losses)]
    watch.on_steps(trainer, trainer.rows)
    trainer.spikes = [row.step for row in trainer.rows if row.scalars["loss_spike"]]
    return trainer


CALM = list(np.random.default_rng(0).normal(2.0, 0.1, 200))


def test_it_takes_some_steps_in_a_row_to_go_back():
    watch = LossSpike(NumbersConfig(roll_backs=1))
    assert not look(watch, CALM).spikes
    one = look(watch, [9.0, 2.0], first=201)
    assert (one.spikes, one.said, one.wants_back, one.doubt) == ([201], [], 0, "")
    two = look(watch, [9.0, 9.0], first=203)
    assert (two.spikes, two.said, two.wants_back, two.doubt) == ([203, 204], [], 0, "its loss spikes")
    three = look(watch, [math.nan, 9.0, 2.0], first=205)
    assert (three.spikes, three.wants_back, three.doubt) == ([206], 203, "its loss spikes")
    assert three.said[0].startswith("LOSS SPIKE: since step 203 the loss is above 2.")
    assert three.said[1] == "the loss spike ended before step 207: 2"


def test_unasked_it_only_speaks():
    watch = LossSpike(NumbersConfig())
    seen = look(watch, [*CALM, 9.0, 9.0, 9.0])
    assert len(seen.said) == 1
    assert (seen.wants_back, seen.doubt) == (0, "")


@pytest.mark.parametrize("losses", [[2.0] * 60 + [9.0] * 3, list(np.linspace(8, 2, 300)), [2.0] * 100 + [2.1] * 9])
def test_few_steps_a_curve_that_falls_and_a_small_rise_of_an_even_one_are_none(losses):
    assert not look(LossSpike(NumbersConfig()), losses).spikes


def test_a_level_that_stays_becomes_the_usual_one():
    seen = look(LossSpike(NumbersConfig()), CALM + [9.0 + 0.1 * loss for loss in CALM])
    assert seen.spikes[0] == 201
    assert len(seen.spikes) < 70
    assert len(seen.said) == 2


def test_it_goes_on_where_it_was_saved():
    losses = [*CALM, 9.0, 9.0, 9.0, 2.0]
    whole, first, second = (LossSpike(NumbersConfig(roll_backs=1)) for _ in range(3))
    expected = look(whole, losses).rows
    found = look(first, losses[:202]).rows
    second.load_state(json.loads(json.dumps(first.state())))
    assert found + look(second, losses[202:], first=203).rows == expected
    assert second.state() == whole.state()


def test_it_can_be_off(tmp_path):
    row = Row(1, {"loss": 1.0})
    LossSpike(NumbersConfig(spike=0)).on_steps(SimpleNamespace(), [row])
    assert "loss_spike" not in row.scalars
    with pytest.raises(ConfigError, match=r"roll_backs is 2, but with numbers.spike 0 nothing looks"):
        NumbersConfig(spike=0, roll_backs=2)
    with pytest.raises(ConfigError, match=r"spike_steps is 0; expected 1 or more"):
        NumbersConfig(spike_steps=0)

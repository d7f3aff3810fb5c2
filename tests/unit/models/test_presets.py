"""What the docstrings of the presets promise."""

import pytest

from ringmoe.models import preset

# parameters in millions, to the digits of the docstrings
PARAMETERS = {
    "tiny": 8.8,
    "small": 46,
    "swin-88m": 1220,
    "swin-88m-dense": 90,
    "ringmoe-1b": 1070,
    "ringmoe-14b": 14780,
}


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_presets_have_the_stated_size(name, millions):
    assert preset(name).num_params() / 1e6 == pytest.approx(millions, rel=0.02)


def test_tiny_has_all_that_the_large_one_has():
    tiny, large = preset("tiny"), preset("ringmoe-14b")
    assert tiny.modalities == large.modalities
    assert (tiny.num_specialised, tiny.num_collaborative, tiny.shared) == (4, 4, True)
    assert tiny.stride == tiny.mask_unit == large.mask_unit
    assert max(tiny.map_size(stage) for stage in range(len(tiny.depths))) > tiny.window, "windows are shifted somewhere"

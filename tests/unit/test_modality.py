"""A modality is data: what the registry accepts, refuses and gives back."""

import json

import pytest

from ringmoe import modality
from ringmoe.errors import ConfigError

THERMAL = """
- key: thermal_test
  title: thermal infrared
  bands: [TIR1, TIR2]
  dtypes: [uint16]
  units: [dn]
  wavelengths_nm: [[10600, 11190], [11500, 12510]]
"""


def test_the_four_of_the_paper():
    assert [spec.key for spec in modality.known()[:4]] == ["opt", "ms", "sar_l1", "sar_l2"]
    assert [modality.get(key).num_channels for key in ("opt", "ms", "sar_l1", "sar_l2")] == [3, 4, 8, 1]
    assert modality.SAR_L1.channels[:3] == ("HH_I", "HH_Q", "HV_I")
    assert modality.SAR_L1.num_target_channels == 1  # power summed over the polarisations, Eq. 5


@pytest.mark.parametrize("spec", modality.known(), ids=lambda spec: spec.key)
def test_a_spec_survives_its_dictionary(spec):
    written = json.dumps(spec.to_dict())
    again = modality.ModalitySpec.from_dict(json.loads(written))
    assert again == spec
    assert json.dumps(again.to_dict()) == written  # or a manifest's bytes tell whether another was read before it


def test_a_fifth_modality_is_a_yaml_entry(tmp_path):
    path = tmp_path / "modalities.yaml"
    path.write_text(THERMAL)
    (spec,) = modality.load(path)
    assert modality.get("thermal_test") is spec
    assert spec.num_channels == spec.num_target_channels == 2
    modality.load(path)  # the same again changes nothing
    path.write_text(THERMAL.replace("uint16", "uint8"))
    with pytest.raises(ConfigError, match="registered already"):
        modality.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "two words"}, "letters, digits"),
        ({"wavelengths_nm": ((1.0, 2.0),)}, "3 bands but 1 wavelength"),
        ({"target": "power"}, "needs complex bands"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        modality.ModalitySpec.from_dict({**modality.OPT.to_dict(), **change})


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'lidar'.*opt"):
        modality.get("lidar")

from pathlib import Path

import pytest

from ringmoe.errors import ConfigError
from ringmoe.raster.declare import Declaration, Declarations


def test_first_match_counts():
    entries = Declarations((Declaration(match="naip/*.tif", sensor="NAIP"), Declaration(match="*.tif", sensor="other")))
    found = {name: entries.of(name) for name in ("data/naip/m_1.tif", "naip/x/m_1.tif", "naip/m_1.jpg")}
    assert [entry and entry.sensor for entry in found.values()] == ["NAIP", "other", None]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"modality": "ms", "bands": ("R", None, "G", "B", "NIR")}, (4, 3, 1, 5)),
        ({"modality": "ms", "bands": {"B": 2, "G": 3, "R": 4, "NIR": 8}}, (2, 3, 4, 8)),
        ({"modality": "sar_l1", "bands": ("VV",), "absent": ("HH", "HV", "VH")}, (None, None, None, 1)),
        ({"modality": "ms"}, None),
        ({}, None),
    ],
)
def test_band_indices(fields: dict[str, object], expected: tuple[int | None, ...] | None):
    assert Declaration(match="*", **fields).band_indices == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bands": ("R", "G", "B")}, "not of which modality"),
        ({"modality": "optical"}, "unknown modality 'optical'"),
        ({"modality": "ms", "units": "db"}, "units 'db', but ms knows dn, reflectance"),
        ({"modality": "opt", "bands": ("R", "G")}, "bands R, G, but opt has R, G, B: each once"),
        ({"modality": "opt", "bands": ("R", "G", "B", "B")}, "each once"),
        ({"modality": "opt", "bands": ("R", "G"), "absent": ("B",)}, "each once"),
        ({"modality": "sar_l1", "bands": ("VV",)}, "or under absent"),
        ({"modality": "sar_l1", "bands": (), "absent": ("HH", "HV", "VH", "VV")}, "numbered from 1"),
        ({"modality": "opt", "bands": {"R": 1, "G": 2, "B": 2}}, "used once"),
        ({"modality": "opt", "bands": {"R": 0, "G": 1, "B": 2}}, "numbered from 1"),
    ],
)
def test_contradictions(fields: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        Declaration(match="x.tif", **fields)


def test_file(tmp_path: Path):
    path = tmp_path / "scenes.yaml"
    path.write_text("scenes:\n- {match: a.tif, modality: ms, bands: [R, null, G, B, NIR], gsd: 3}\n- {match: b.tif}\n")
    first, second = Declarations.load(path).scenes
    assert (first.band_indices, first.gsd, second) == ((4, 3, 1, 5), 3.0, Declaration(match="b.tif"))
    path.write_text("scenes:\n- {match: a.tif, sensr: NAIP}\n")
    with pytest.raises(ConfigError, match=r"scenes.yaml.*no setting 'sensr'; did you mean 'sensor'"):
        Declarations.load(path)

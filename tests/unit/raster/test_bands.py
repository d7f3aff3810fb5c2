import pytest

from ringmoe import modality as registry
from ringmoe.modality import ModalitySpec
from ringmoe.raster.bands import RasterBands, identify, names_of
from ringmoe.raster.scene import UNKNOWN_SENSOR, UnusableError

SENTINEL2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


def known_by_name(*names: str | None, dtype: str, forced: str | None = None) -> tuple[str, tuple[int | None, ...]]:
    match = identify(RasterBands(names, dtype), forced)
    return match.modality, match.band_indices


def refusal(*names: str | None, dtype: str, forced: str | None = None) -> tuple[str, str]:
    with pytest.raises(UnusableError) as caught:
        identify(RasterBands(names, dtype), forced)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("names", "dtype", "expected"),
    [
        (("red", "green", "blue"), "uint8", ("opt", (1, 2, 3))),
        (("Blue", "Green", "Red"), "uint8", ("opt", (3, 2, 1))),
        (("B", "G", "R", "NIR"), "uint16", ("ms", (1, 2, 3, 4))),
        (("red", "green", "blue", "nir"), "uint8", ("ms", (3, 2, 1, 4))),
        (("blue", "green", "red", "red edge", "near-infrared"), "float32", ("ms", (1, 2, 3, 5))),
        (("B02", "B03", "B04", "B08"), "uint16", ("ms", (1, 2, 3, 4))),
        (SENTINEL2, "int16", ("ms", (2, 3, 4, 8))),
        (SENTINEL2[:7], "uint16", ("ms", (2, 3, 4, 5))),
        (("HH", "HV", "VH", "VV"), "complex64", ("sar_l1", (1, 2, 3, 4))),
        (("VV", "VH"), "complex_int16", ("sar_l1", (None, None, 2, 1))),
        (("hh",), "complex64", ("sar_l1", (1, None, None, None))),
        (("HH",), "float32", ("sar_l2", (1,))),
        (("Sigma0_VV_db",), "float32", ("sar_l2", (1,))),
        (("amplitude",), "uint16", ("sar_l2", (1,))),
    ],
)
def test_known_by_name(names: tuple[str, ...], dtype: str, expected: tuple[str, tuple[int | None, ...]]):
    assert known_by_name(*names, dtype=dtype) == expected


@pytest.mark.parametrize(
    ("names", "dtype", "code"),
    [
        ((None,) * 4, "uint8", "ambiguous_bands"),
        (("red", "green", "blue", None), "uint8", "ambiguous_bands"),
        (("VV", "VH"), "float32", "ambiguous_bands"),
        (("R", "G", "B"), "uint16", "wrong_dtype"),
        (("HH",), "complex128", "wrong_dtype"),
        (SENTINEL2[:7], "uint8", "wrong_bands"),  # an older Landsat, or anything else
        (tuple(f"B{i}" for i in range(1, 12)), "uint16", "wrong_bands"),  # all of Landsat-8, where B8 is panchromatic
        (("B05", "B06", "B07", "B8A"), "uint16", "wrong_bands"),
        (("height_m",), "float32", "wrong_bands"),
        (("T11", "T12_real", "T12_imag", "T22"), "float32", "not_scattering"),
        (("C11", "C12_re", "C12_im", "C22"), "float32", "not_scattering"),
    ],
)
def test_refused(names: tuple[str | None, ...], dtype: str, code: str):
    assert refusal(*names, dtype=dtype)[0] == code


def test_forced_modality_takes_unnamed_bands_in_its_order():
    assert known_by_name(None, None, None, None, dtype="uint16", forced="ms") == ("ms", (1, 2, 3, 4))
    assert known_by_name(None, dtype="uint8", forced="sar_l2") == ("sar_l2", (1,))
    assert known_by_name(*SENTINEL2, dtype="uint16", forced="ms") == ("ms", (2, 3, 4, 8))


@pytest.mark.parametrize("names", [(None,) * 5, ("red", "green", "blue", None, None)])
def test_five_bands_are_not_optical(names: tuple[str | None, ...]):
    code, message = refusal(*names, dtype="uint8", forced="opt")
    assert code == "wrong_bands"
    assert "5 bands of uint8" in message
    assert "opt has 3 (R, G, B)" in message


def test_sensor_of_a_convention():
    assert identify(RasterBands(SENTINEL2, "uint16")).sensor == "Sentinel-2 MSI"
    assert identify(RasterBands(SENTINEL2[:7], "uint16")).sensor == "Landsat-8/9 OLI"
    assert identify(RasterBands(("B", "G", "R", "NIR"), "uint16")).sensor == UNKNOWN_SENSOR


def test_a_fifth_modality_is_known_by_its_bands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    bands = {"dtypes": ("uint16",), "units": ("dn",), "wavelengths_nm": ((10600, 11190), (11500, 12510))}
    registry.register(ModalitySpec(key="thermal", title="thermal infrared", bands=("TIRS1", "TIRS2"), **bands))
    assert known_by_name("tirs2", "tirs1", dtype="uint16") == ("thermal", (2, 1))
    registry.register(ModalitySpec(key="heat", title="the same bands again", bands=("TIRS1", "TIRS2"), **bands))
    code, message = refusal("tirs2", "tirs1", dtype="uint16")
    assert code == "ambiguous_bands"
    assert "thermal or heat" in message


def test_descriptions_come_before_colours():
    assert names_of((None, " NIR ", "", None), ("red", "green", "blue", "alpha")) == ("red", "NIR", "blue", None)

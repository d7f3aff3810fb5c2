"""Acquisitions written as their agencies deliver them: folders, names, metadata and types; the pixels are drawn.

Only what a reader needs is written, with made-up constants of the true size. Every raster says that it is synthetic.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform as reproject

from ringmoe.raster.synth.fields import Array

# C bands, H rows, W columns

_SYNTHETIC = {"RINGMOE_SYNTHETIC": "YES", "TIFFTAG_SOFTWARE": "ringmoe synth"}
_METRES_OF_DEGREE = 111_320.0
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_AMPLITUDE_STEP = 250.0  # numbers of Sentinel-1 for an amplitude of 1
_GAOFEN_QUALIFY, _GAOFEN_CONSTANT = 2400.0, 32.0
_GAOFEN_GAIN = _GAOFEN_QUALIFY / 32767 * 10 ** (-_GAOFEN_CONSTANT / 20)


@dataclass(frozen=True)
class Shot:
    """One acquisition.

    Attributes:
        number: Its number in the archive, for names that must differ.
        time: When it would have been taken.
        zone: UTM zone on the northern hemisphere.
        corner: Easting and northing of its upper left corner, metres.
        gsd: Side of a pixel, metres.
        pixels_CHW: As delivered.
        cloud_HW: Which pixels are clouded.
    """

    number: int
    time: datetime
    zone: int
    corner: tuple[float, float]
    gsd: float
    pixels_CHW: Array
    cloud_HW: Array

    @property
    def size(self) -> int:
        """Height and width, pixels."""
        return int(self.pixels_CHW.shape[1])

    @property
    def grid(self) -> dict[str, Any]:
        """Reference system and transform."""
        x, y = self.corner
        return {"crs": f"EPSG:{32600 + self.zone}", "transform": rasterio.Affine(self.gsd, 0, x, 0, -self.gsd, y)}

    @cached_property
    def place(self) -> tuple[float, float]:
        """Longitude and latitude of the corner."""
        (lon,), (lat,) = reproject(self.grid["crs"], "EPSG:4326", [self.corner[0]], [self.corner[1]])[:2]
        return float(lon), float(lat)

    def stamp(self, form: str = "%Y%m%dT%H%M%S") -> str:
        """The time."""
        return self.time.strftime(form)


def reflectance_to(scale: float, offset: float, dtype: str, highest: float) -> Callable[[Array], Array]:
    """From reflectance to digital numbers: scaled, rounded, limited to 1 and above, for 0 is no data."""
    return lambda pixels_CHW: np.clip(np.rint(pixels_CHW * scale + offset), 1, highest).astype(dtype)


def to_complex_int16(pixels_CHW: Array) -> Array:
    """Scattering amplitudes to whole I and Q."""
    parts = np.clip(np.rint(np.stack((pixels_CHW.real, pixels_CHW.imag)) * _AMPLITUDE_STEP), -32768, 32767)
    whole: Array = (parts[0] + 1j * parts[1]).astype(np.complex64)
    return whole


def to_gaofen(pixels_CHW: Array) -> Array:
    """Scattering amplitudes to the whole numbers of GF-3, still as complex ones."""
    parts = np.clip(np.rint(np.stack((pixels_CHW.real, pixels_CHW.imag)) / _GAOFEN_GAIN), -32768, 32767)
    whole: Array = (parts[0] + 1j * parts[1]).astype(np.complex64)
    return whole


def sentinel2(folder: Path, shot: Shot) -> None:
    """Level-2A SAFE with its four 10 m bands and the scene classification."""
    tile, name = f"T{shot.zone:02d}UQ{chr(65 + shot.number % 22)}", f"R{shot.number % 143 + 1:03d}"
    uri = f"S2B_MSIL2A_{shot.stamp()}_N0510_{name}_{tile}_{shot.stamp('%Y%m%d')}T{shot.number:06d}.SAFE"
    data = f"GRANULE/L2A_{tile}_A{shot.number:06d}_{shot.stamp()}/IMG_DATA"
    images = [f"{data}/R10m/{tile}_{shot.stamp()}_{band}_10m" for band in ("B02", "B03", "B04", "B08")]
    for image, pixels_HW in zip(images, shot.pixels_CHW, strict=True):
        _raster(folder / uri / f"{image}.jp2", pixels_HW, **shot.grid)
    classes = f"{data}/R20m/{tile}_{shot.stamp()}_SCL_20m"
    scl_HW = np.where(shot.cloud_HW[::2, ::2], 9, 4).astype("uint8")
    _raster(folder / uri / f"{classes}.jp2", scl_HW, **replace(shot, gsd=2 * shot.gsd).grid)
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{band}">-1000</BOA_ADD_OFFSET>' for band in range(13))
    listed = "".join(f"<IMAGE_FILE>{image}</IMAGE_FILE>" for image in (*images, classes))
    _text(
        folder / uri / "MTD_MSIL2A.xml",
        f'{_HEAD}<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">'
        f"<n1:General_Info><Product_Info><PRODUCT_START_TIME>{shot.time:%Y-%m-%dT%H:%M:%S.000Z}</PRODUCT_START_TIME>"
        f"<PRODUCT_URI>{uri}</PRODUCT_URI><PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>"
        "<PROCESSING_BASELINE>05.10</PROCESSING_BASELINE><Product_Organisation><Granule_List><Granule>"
        f"{listed}</Granule></Granule_List></Product_Organisation></Product_Info><Product_Image_Characteristics>"
        '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
        f"</QUANTIFICATION_VALUES_LIST><BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"
        "</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>\n",
    )


def landsat(folder: Path, shot: Shot) -> None:
    """Collection 2 Level 2 with four bands and the pixel quality band."""
    day, path = shot.stamp("%Y%m%d"), 190 + shot.number % 40
    name = f"LC09_L2SP_{path:03d}{shot.number % 248 + 1:03d}_{day}_{day}_02_T1"
    for band, pixels_HW in enumerate(shot.pixels_CHW, start=2):
        _raster(folder / name / f"{name}_SR_B{band}.TIF", pixels_HW, compress="deflate", **shot.grid)
    clear, cloud, fill = 21824, 22280, 1
    quality_HW = np.where(shot.pixels_CHW[0] == 0, fill, np.where(shot.cloud_HW, cloud, clear)).astype("uint16")
    _raster(folder / name / f"{name}_QA_PIXEL.TIF", quality_HW, compress="deflate", **shot.grid)
    groups = {
        "PRODUCT_CONTENTS": {
            "LANDSAT_PRODUCT_ID": name,
            "PROCESSING_LEVEL": "L2SP",
            "COLLECTION_NUMBER": "02",
            **{f"FILE_NAME_BAND_{band}": f"{name}_SR_B{band}.TIF" for band in range(2, 6)},
            "FILE_NAME_QUALITY_L1_PIXEL": f"{name}_QA_PIXEL.TIF",
        },
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": "LANDSAT_9",
            "SENSOR_ID": "OLI_TIRS",
            "WRS_PATH": f"{path:03d}",
            "WRS_ROW": f"{shot.number % 248 + 1:03d}",
            "DATE_ACQUIRED": shot.stamp("%Y-%m-%d"),
            "SCENE_CENTER_TIME": shot.stamp("%H:%M:%S.0000000Z"),
        },
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {
            f"REFLECTANCE_{kind}_BAND_{band}": value
            for band in range(2, 6)
            for kind, value in (("MULT", "2.75e-05"), ("ADD", "-0.2"))
        },
    }
    _text(folder / name / f"{name}_MTL.json", json.dumps({"LANDSAT_METADATA_FILE": groups}, indent=1) + "\n")


def planet(folder: Path, shot: Shot) -> None:
    """PlanetScope analytic surface reflectance with the usable data mask."""
    stem = f"{shot.stamp('%Y%m%d_%H%M%S')}_{shot.number % 100:02d}_{0x2400 + shot.number:04x}_3B"
    _raster(folder / f"{stem}_AnalyticMS_SR.tif", shot.pixels_CHW, compress="deflate", **shot.grid)
    mask_CHW = np.zeros((8, shot.size, shot.size), dtype="uint8")
    seen_HW = shot.pixels_CHW[0] != 0
    mask_CHW[0], mask_CHW[5] = seen_HW & ~shot.cloud_HW, seen_HW & shot.cloud_HW
    _raster(folder / f"{stem}_udm2.tif", mask_CHW, compress="deflate", **shot.grid)
    _text(
        folder / f"{stem}_AnalyticMS_metadata.xml",
        f'{_HEAD}<ps:EarthObservation xmlns:ps="http://schemas.planet.com/ps/v1/planet_product_metadata_geocorrected_'
        f'level"><ps:Acquisition><ps:acquisitionDateTime>{shot.time.isoformat()}</ps:acquisitionDateTime>'
        "</ps:Acquisition></ps:EarthObservation>\n",
    )


def naip(folder: Path, shot: Shot) -> None:
    """A quarter quad: red, green, blue, near infrared in one file that is known by its name."""
    pixels_CHW = shot.pixels_CHW[[2, 1, 0, 3]]
    name = f"m_{4700000 + shot.number:07d}_se_{shot.zone:02d}_1_{shot.stamp('%Y%m%d')}.tif"
    _raster(folder / name, pixels_CHW, compress="deflate", **shot.grid)


def gaofen2(folder: Path, shot: Shot) -> None:
    """L1A of the PMS camera: no reference system and no control points."""
    lon, lat = shot.place
    stem = f"GF2_PMS1_E{abs(lon):.1f}_N{abs(lat):.1f}_{shot.stamp('%Y%m%d')}_L1A{shot.number:010d}"
    _raster(folder / stem / f"{stem}-MSS1.tiff", shot.pixels_CHW, compress="deflate")
    _text(
        folder / stem / f"{stem}-MSS1.xml",
        f"{_HEAD}<ProductMetaData><SatelliteID>GF2</SatelliteID><SensorID>PMS1</SensorID><ProductLevel>LEVEL1A"
        f"</ProductLevel><Bands>1,2,3,4</Bands><ImageGSD>{shot.gsd:g}</ImageGSD><WidthInPixels>{shot.size}"
        f"</WidthInPixels><HeightInPixels>{shot.size}</HeightInPixels><CenterTime>{shot.time:%Y-%m-%d %H:%M:%S}"
        "</CenterTime></ProductMetaData>\n",
    )


def gaofen3(folder: Path, shot: Shot) -> None:
    """L1A of the quad-pol strip mode: I and Q of each polarisation in a file, constants in the metadata."""
    lon, lat = shot.place
    stem = f"GF3_MYN_QPSI_{shot.number:06d}_E{abs(lon):.1f}_N{abs(lat):.1f}_{shot.stamp('%Y%m%d')}_L1A"
    number = f"L1{shot.number:010d}"
    polarisations = ("HH", "HV", "VH", "VV")
    for name, pixels_HW in zip(polarisations, shot.pixels_CHW, strict=True):
        parts_CHW = np.stack((pixels_HW.real, pixels_HW.imag)).astype("int16")
        _raster(folder / stem / f"{stem}_{name}_{number}.tiff", parts_CHW, compress="deflate")
    qualify, constant = (
        "".join(f"<{name}>{value}</{name}>" for name in polarisations) for value in (_GAOFEN_QUALIFY, _GAOFEN_CONSTANT)
    )
    _text(
        folder / stem / f"{stem}_AHV_{number}.meta.xml",
        f"{_HEAD}<product><satellite>GF3</satellite><sensor><imagingMode>QPSI</imagingMode></sensor><imageinfo>"
        f"<imagingTime><start>{shot.time:%Y-%m-%d %H:%M:%S.000000}</start></imagingTime>"
        f"<QualifyValue>{qualify}</QualifyValue></imageinfo><processinfo><CalibrationConst>{constant}"
        "</CalibrationConst></processinfo></product>\n",
    )


def sentinel1_slc(folder: Path, shot: Shot) -> None:
    """SLC of one swath in two polarisations, whole I and Q, with control points."""
    pixels = {"vh": shot.pixels_CHW[2], "vv": shot.pixels_CHW[3]}
    _sentinel1(folder, shot, "SLC_", pixels, dtype="complex_int16")


def sentinel1_grd(folder: Path, shot: Shot) -> None:
    """GRD in two polarisations, detected, with control points."""
    pixels = {"vh": shot.pixels_CHW[0], "vv": shot.pixels_CHW[1]}
    _sentinel1(folder, shot, "GRDH", pixels, dtype="uint16")


def _sentinel1(folder: Path, shot: Shot, kind: str, pixels: Mapping[str, Array], *, dtype: str) -> None:
    """A Level-1 SAFE folder."""
    product, swath = kind[:3], "iw1" if kind.startswith("SLC") else "iw"
    end = shot.time.replace(microsecond=0)
    times = f"{shot.stamp()}_{end:%Y%m%dT%H%M%S}"
    root = folder / f"S1A_IW_{kind}_1SDV_{times}_{shot.number:06d}_{shot.number:06X}_{shot.number:04X}.SAFE"
    listed = []
    for place, (name, pixels_HW) in enumerate(pixels.items(), start=1):
        lower = times.lower().replace("_", "-")
        stem = f"s1a-{swath}-{product.lower()}-{name}-{lower}-{shot.number:06d}-{shot.number:06x}-{place:03d}"
        files = {
            "measurement": f"measurement/{stem}.tiff",
            "annotation": f"annotation/{stem}.xml",
            "calibration": f"annotation/calibration/calibration-{stem}.xml",
        }
        points = _control(shot)
        _raster(root / files["measurement"], pixels_HW, gcps=points, dtype=dtype, compress="deflate")
        header = (
            f"<adsHeader><missionId>S1A</missionId><productType>{product}</productType><polarisation>{name.upper()}"
            f"</polarisation><mode>IW</mode><swath>{swath.upper()}</swath><startTime>{shot.time:%Y-%m-%dT%H:%M:%S.%f}"
            "</startTime></adsHeader>"
        )
        grid = "".join(
            f"<geolocationGridPoint><line>{point.row:g}</line><pixel>{point.col:g}</pixel><latitude>{point.y!r}"
            f"</latitude><longitude>{point.x!r}</longitude></geolocationGridPoint>"
            for point in points
        )
        _text(
            root / files["annotation"],
            f"{_HEAD}<product>{header}<imageAnnotation><imageInformation><numberOfSamples>{shot.size}</numberOfSamples>"
            f"<numberOfLines>{shot.size}</numberOfLines></imageInformation></imageAnnotation><geolocationGrid>"
            f"<geolocationGridPointList>{grid}</geolocationGridPointList></geolocationGrid></product>\n",
        )
        vectors = "".join(
            f"<calibrationVector><line>{line}</line><pixel>0 {shot.size}</pixel><sigmaNought>{_AMPLITUDE_STEP:g} "
            f"{1.05 * _AMPLITUDE_STEP:g}</sigmaNought></calibrationVector>"
            for line in (0, shot.size)
        )
        _text(
            root / files["calibration"],
            f"{_HEAD}<calibration>{header}<calibrationVectorList>{vectors}</calibrationVectorList></calibration>\n",
        )
        listed += list(files.values())
    objects = "".join(
        f'<dataObject ID="d{number}"><byteStream><fileLocation locatorType="URL" href="./{file}"/></byteStream>'
        "</dataObject>"
        for number, file in enumerate(listed)
    )
    _text(
        root / "manifest.safe",
        f'{_HEAD}<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1"><dataObjectSection>{objects}</dataObjectSection>'
        "</xfdu:XFDU>\n",
    )


def _control(shot: Shot) -> list[GroundControlPoint]:
    """Control points of a scene that lies askew, as radar sees it."""
    lon, lat = shot.place
    step = shot.gsd / _METRES_OF_DEGREE
    east = step / np.cos(np.radians(lat))
    return [
        GroundControlPoint(row, col, float(lon - east * (col - 0.2 * row)), float(lat - step * (row + 0.2 * col)), 0.0)
        for row in np.linspace(0, shot.size, 3).tolist()
        for col in np.linspace(0, shot.size, 3).tolist()
    ]


def geotiff(
    *, modality: str, units: str, sensor: str, bands: tuple[str, ...], **options: Any
) -> Callable[[Path, Shot], None]:
    """A GeoTIFF whose tags and band names say what it is."""

    def write(folder: Path, shot: Shot) -> None:
        tags = {
            "RINGMOE_MODALITY": modality,
            "RINGMOE_UNITS": units,
            "SENSOR": sensor,
            "ACQUIRED": shot.time.isoformat(),
        }
        _raster(
            folder / f"{modality}_{shot.number:04d}.tif",
            shot.pixels_CHW,
            tags=tags,
            descriptions=bands,
            **shot.grid,
            **options,
        )

    return write


def _raster(
    path: Path,
    pixels: Array,
    *,
    tags: Mapping[str, str] | None = None,
    descriptions: tuple[str, ...] = (),
    gcps: list[GroundControlPoint] | None = None,
    **options: Any,
) -> None:
    """Writes (H, W) or (C, H, W) pixels; the suffix says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_CHW = pixels if pixels.ndim == 3 else pixels[None]
    num_bands, height, width = pixels_CHW.shape
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": pixels_CHW.dtype.name}
    if path.suffix == ".jp2":
        profile |= {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"}
    profile |= {"count": num_bands, "height": height, "width": width, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(pixels_CHW)
            dataset.update_tags(**_SYNTHETIC, **(tags or {}))
            if descriptions:
                dataset.descriptions = descriptions
            if gcps is not None:
                dataset.gcps = gcps, rasterio.CRS.from_epsg(4326)


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")

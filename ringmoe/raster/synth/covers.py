"""What covers the ground and how it looks to each sensor: reflectances, and polarimetric covariances at C band.

The numbers are typical values of the textbooks (green vegetation rises steeply into the near infrared, water is dark
there, soil rises slowly, sealed ground is flat), not measurements. A sensor needs no more than these tables to know
a cover, so a new cover is one entry in each.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from ringmoe.raster.synth.fields import Array


class Cover(IntEnum):
    """Classes of ``cover.tif``. Zero is left free: a pixel without a class would be a fault."""

    WATER = 1
    TREES = 2
    GRASS = 3
    CROP = 4
    SOIL = 5
    ROAD = 6
    BUILDING = 7
    SHIP = 8
    VEHICLE = 9


class Spectrum(NamedTuple):
    """Reflectance in each band, 0 to 1."""

    blue: float
    green: float
    red: float
    nir: float


WATER_CLEAR = Spectrum(0.040, 0.038, 0.020, 0.008)
WATER_TURBID = Spectrum(0.062, 0.082, 0.066, 0.026)
BROADLEAF = Spectrum(0.022, 0.048, 0.024, 0.400)
CONIFER = Spectrum(0.018, 0.032, 0.020, 0.260)
GRASS = Spectrum(0.034, 0.078, 0.046, 0.360)
SOIL = Spectrum(0.085, 0.125, 0.175, 0.245)
ASPHALT = Spectrum(0.090, 0.095, 0.100, 0.108)
MARKING = Spectrum(0.350, 0.360, 0.360, 0.370)
CROPS = (
    Spectrum(0.030, 0.072, 0.032, 0.460),  # cereal, green
    Spectrum(0.024, 0.056, 0.026, 0.420),  # maize
    Spectrum(0.050, 0.170, 0.130, 0.480),  # rapeseed in flower
    Spectrum(0.040, 0.098, 0.052, 0.400),  # meadow clover
    Spectrum(0.090, 0.150, 0.170, 0.330),  # cereal, ripe
)
ROOFS = (
    Spectrum(0.075, 0.105, 0.210, 0.270),  # clay tile
    Spectrum(0.105, 0.105, 0.145, 0.185),  # weathered tile
    Spectrum(0.095, 0.100, 0.105, 0.115),  # slate
    Spectrum(0.220, 0.230, 0.235, 0.245),  # concrete
    Spectrum(0.430, 0.440, 0.440, 0.430),  # white membrane
    Spectrum(0.190, 0.170, 0.150, 0.170),  # painted metal
)
HULLS = (
    Spectrum(0.060, 0.070, 0.170, 0.190),  # red deck
    Spectrum(0.120, 0.125, 0.130, 0.140),  # grey
    Spectrum(0.075, 0.115, 0.085, 0.110),  # green deck
    Spectrum(0.150, 0.110, 0.080, 0.100),  # blue deck
)
PAINTS = (
    Spectrum(0.420, 0.430, 0.430, 0.430),  # white
    Spectrum(0.030, 0.030, 0.030, 0.035),  # black
    Spectrum(0.040, 0.045, 0.260, 0.280),  # red
    Spectrum(0.230, 0.240, 0.245, 0.255),  # silver
    Spectrum(0.220, 0.110, 0.070, 0.110),  # blue
)


@dataclass(frozen=True)
class Scatterer:
    """Second-order statistics of a reflection-symmetric, reciprocal target: all of its polarimetric covariance.

    Attributes:
        hh_db: Backscatter <|S_HH|^2>, dB.
        hv_db: Backscatter <|S_HV|^2> = <|S_VH|^2>, dB.
        vv_db: Backscatter <|S_VV|^2>, dB.
        coherence: <S_HH S_VV*> / sqrt(<|S_HH|^2> <|S_VV|^2>), complex; co-pol and cross-pol are uncorrelated.
    """

    hh_db: float
    hv_db: float
    vv_db: float
    coherence: complex

    @property
    def powers(self) -> tuple[float, float, float]:
        """Linear powers of HH, HV and VV."""
        hh, hv, vv = (10.0 ** (db / 10.0) for db in (self.hh_db, self.hv_db, self.vv_db))
        return hh, hv, vv

    @property
    def covariance_44(self) -> Array:
        """(4, 4) complex <S_i S_j*> over HH, HV, VH, VV; rank 3, because HV and VH are one number (reciprocity)."""
        hh, hv, vv = self.powers
        cross = self.coherence * np.sqrt(hh * vv)
        return np.array(
            [[hh, 0, 0, cross], [0, hv, hv, 0], [0, hv, hv, 0], [np.conj(cross), 0, 0, vv]], dtype=np.complex128
        )


SCATTERERS = {
    Cover.WATER: Scatterer(-21.5, -31.0, -18.5, 0.93 + 0.02j),  # slight-roughness (Bragg): VV over HH, coherent
    Cover.TREES: Scatterer(-8.5, -13.3, -9.0, 0.33 + 0.02j),  # cloud of dipoles: HV a third of HH, coherence a third
    Cover.GRASS: Scatterer(-14.0, -21.5, -13.2, 0.62 + 0.05j),
    Cover.CROP: Scatterer(-10.8, -17.0, -11.2, 0.45 - 0.10j),
    Cover.SOIL: Scatterer(-14.0, -24.5, -12.0, 0.80 + 0.04j),  # rougher surface
    Cover.ROAD: Scatterer(-20.5, -30.5, -19.3, 0.80 + 0.02j),  # smooth surface
    Cover.BUILDING: Scatterer(-8.0, -16.5, -8.5, 0.45 + 0.10j),  # roof
    Cover.SHIP: Scatterer(3.0, -6.5, 2.0, -0.25 + 0.20j),
    Cover.VEHICLE: Scatterer(-2.0, -12.0, -3.0, -0.35 + 0.10j),
}
WALL = Scatterer(6.0, -8.0, 3.0, -0.62 + 0.15j)  # ground-wall double bounce: HH and VV in opposite phase
NOISE_DB = -36.0  # receiver noise in each channel

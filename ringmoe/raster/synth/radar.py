"""A side-looking quad-polarised SAR at C band: a covariance for each pixel, speckle drawn from it, a focused image.

Echoes are drawn as the radar equation has them: a resolution cell holds many scatterers, so the four polarisations
are jointly circular complex Gaussian with the cell's covariance. The image is in ground geometry: walls echo and
cast a shadow, but nothing is laid over, so that all sensors share one grid.
"""

from dataclasses import dataclass

import numpy as np

from ringmoe.raster.synth.covers import NOISE_DB, SCATTERERS, WALL, Cover, Scatterer
from ringmoe.raster.synth.fields import Array, blur, cast_shadow, generator, shift
from ringmoe.raster.synth.ground import Ground

# H rows, W columns, C the four channels HH, HV, VH, VV

_INCIDENCE = np.deg2rad(36.0)
_BANDWIDTH = 0.95  # of the sampling rate
_TAPER = 0.45  # weight at the edge of the band: lower side lobes for a wider peak
_STEP = 2.0**-11  # quantisation of I and Q: 16 bits reach from -16 to 16


@dataclass(frozen=True)
class Covariance:
    """Second-order statistics of every pixel (reflection symmetry: co-pol and cross-pol are uncorrelated).

    Attributes:
        hh_HW: <|S_HH|^2>, linear.
        hv_HW: <|S_HV|^2> = <|S_VH|^2>.
        vv_HW: <|S_VV|^2>.
        hhvv_HW: <S_HH S_VV*>, complex.
    """

    hh_HW: Array
    hv_HW: Array
    vv_HW: Array
    hhvv_HW: Array

    def scaled(self, factor_HW: Array) -> "Covariance":
        """The same mechanisms with other power."""
        return Covariance(
            self.hh_HW * factor_HW, self.hv_HW * factor_HW, self.vv_HW * factor_HW, self.hhvv_HW * factor_HW
        )

    def mixed(self, other: "Covariance", share_HW: Array) -> "Covariance":
        """Independent echoes of two mechanisms from one cell: covariances add in proportion."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Covariance(*(mine + share_HW * (theirs - mine) for mine, theirs in pairs))

    @classmethod
    def of(cls, scatterers: list[Scatterer], which_HW: Array) -> "Covariance":
        """The covariance of each pixel by its row in a list of scatterers."""
        hh, hv, vv = np.array([scatterer.powers for scatterer in scatterers], dtype=np.float32).T
        coherence = np.array([scatterer.coherence for scatterer in scatterers], dtype=np.complex64)
        return cls(hh[which_HW], hv[which_HW], vv[which_HW], (coherence * np.sqrt(hh * vv))[which_HW])


def look_of(place: tuple[int, int, int]) -> float:
    """Direction in which the radar of a scene looks, radians: to the east or west, as satellites on polar orbits do."""
    rng = generator(*place, "orbit")
    return float(rng.choice((0.0, np.pi)) + np.deg2rad(rng.uniform(-12, 12)))


def covariance(ground: Ground, look: float) -> Covariance:
    """What each pixel scatters back: its cover, more or less grown, lit from the side, with walls and shadows."""
    covers = list(SCATTERERS)
    row_of = np.zeros(max(covers) + 1, dtype=np.intp)
    row_of[covers] = range(len(covers))
    echoes = Covariance.of(list(SCATTERERS.values()), row_of[ground.cover_HW])
    soil, wall = (Covariance.of([s], np.zeros(ground.cover_HW.shape, np.intp)) for s in (SCATTERERS[Cover.SOIL], WALL))
    bare_HW = np.where(ground.cover_HW == Cover.CROP, 1.0 - ground.growth_HW, 0.0)
    echoes = echoes.mixed(soil, bare_HW).scaled(ground.echo_HW)
    down_HW, right_HW = np.gradient(blur(ground.elevation_HW, 1.0))
    rise_HW = right_HW * np.cos(look) + down_HW * np.sin(look)
    echoes = echoes.scaled(np.where(ground.cover_HW == Cover.WATER, 1.0, np.clip(1.0 + 2.5 * rise_HW, 0.4, 2.5)))
    # the source lies where the radar comes from, and a ray that falls at the incidence angle leaves a shadow behind
    surface_HW = ground.elevation_HW + ground.height_HW
    hidden_HW = cast_shadow(surface_HW, look + np.pi, np.pi / 2 - _INCIDENCE, float(ground.height_HW.max()) + 2.0)
    echoes = echoes.scaled(1.0 - 0.97 * blur(hidden_HW, 0.5))
    return echoes.mixed(wall, _walls(ground, look))


def _walls(ground: Ground, look: float) -> Array:
    """Share of double bounce: at the foot of walls that face the radar, most where they face it squarely."""
    share_HW = np.zeros(ground.cover_HW.shape, dtype=np.float32)
    roof_HW = ground.cover_HW == Cover.BUILDING
    for step in (0, 1, 2):
        nearer = (round(step * np.sin(look)), round(step * np.cos(look)))
        before = (-round((3 - step) * np.sin(look)), -round((3 - step) * np.cos(look)))
        # step 0 is the first pixel of the roof, steps 1 and 2 the ground before it
        facing_HW = shift(ground.facing_HW, -nearer[0], -nearer[1])
        behind_HW = shift(roof_HW, -nearer[0], -nearer[1])
        before_HW = ~shift(roof_HW, -before[0], -before[1])
        squarely_HW = np.cos(2.0 * (np.nan_to_num(facing_HW) - look)) ** 2
        found_HW = behind_HW & before_HW & (roof_HW if step == 0 else ~roof_HW)
        share_HW = np.maximum(share_HW, np.where(found_HW, 0.06 + 0.94 * squarely_HW**6, 0.0))
    return share_HW


def draw(echoes: Covariance, rng: np.random.Generator) -> Array:
    """One realisation of speckle: circular complex Gaussian with each pixel's covariance.

    With unit variance ``z``, ``HH = sqrt(<hh>) z1`` and ``VV = (<hhvv>* / <hh>) HH + rest z2``, the two rows of the
    covariance's Cholesky factor; the cross-polarised channels share ``z3`` (reciprocity).

    Returns:
        (4, H, W) complex64 in the order HH, HV, VH, VV.
    """
    height, width = echoes.hh_HW.shape
    z1_HW, z2_HW, z3_HW = _circular(rng, (3, height, width))
    hh_HW = np.sqrt(echoes.hh_HW) * z1_HW
    rest_HW = np.maximum(0.0, echoes.vv_HW - np.abs(echoes.hhvv_HW) ** 2 / echoes.hh_HW)
    vv_HW = echoes.hhvv_HW.conj() / echoes.hh_HW * hh_HW + np.sqrt(rest_HW) * z2_HW
    hv_HW = np.sqrt(echoes.hv_HW) * z3_HW
    return np.stack((hh_HW, hv_HW, hv_HW, vv_HW)).astype(np.complex64)


def _circular(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Circular complex Gaussian numbers of mean square 1."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32)
    z: Array = parts.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))
    return z


def focus(echoes_CHW: Array) -> Array:
    """The processor: receiver bandwidth below the sampling rate and a tapered spectrum; the mean power is kept."""
    weights = []
    for length in echoes_CHW.shape[1:]:
        frequency = np.abs(np.fft.fftfreq(length)) / (0.5 * _BANDWIDTH)
        taper = 0.5 * (1 + _TAPER) + 0.5 * (1 - _TAPER) * np.cos(np.pi * frequency)
        weight = np.where(frequency <= 1.0, taper, 0.0)
        weights.append((weight / np.sqrt(np.mean(weight**2))).astype(np.float32))
    spectrum_CHW = np.fft.fft2(echoes_CHW) * weights[0][:, None] * weights[1]
    focused_CHW: Array = np.fft.ifft2(spectrum_CHW).astype(np.complex64)
    return focused_CHW


def image(echoes: Covariance, rng: np.random.Generator) -> Array:
    """A single-look complex image: speckle, receiver noise in each channel, focusing, quantisation.

    Returns:
        (4, H, W) complex64 scattering amplitudes HH, HV, VH, VV, whose squares are the backscatter; multiples of 2^-11.
    """
    echoes_CHW = draw(echoes, rng)
    echoes_CHW += np.sqrt(10.0 ** (NOISE_DB / 10.0)) * _circular(rng, echoes_CHW.shape)
    focused_CHW = focus(echoes_CHW)
    quantised: Array = np.clip(np.rint(focused_CHW.view(np.float32) / _STEP), -32767, 32767) * np.float32(_STEP)
    return quantised.view(np.complex64)


def amplitude(image_CHW: Array) -> Array:
    """The detected product: root of the span, sqrt(|HH|^2 + |HV|^2 + |VH|^2 + |VV|^2); (1, H, W) float32."""
    power_HW: Array = (image_CHW.real**2 + image_CHW.imag**2).sum(axis=0)
    amplitude_HW: Array = np.sqrt(power_HW).astype(np.float32)
    return amplitude_HW[None]

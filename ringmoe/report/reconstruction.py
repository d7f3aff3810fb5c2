"""Pictures of masked reconstruction: what the encoder saw, what the decoder made of it, what was there."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ringmoe.modality import ModalitySpec
from ringmoe.report.canvas import new_figure

# B images, C channels of the target, H height, W width in pixels, D bands that are displayed (1 or 3)

Array = NDArray[Any]

_MASK_COLOUR = (0.33, 0.42, 0.60)  # a hue that neither a grey image nor the ground shows often
_STRETCH_PERCENTILES = (1.0, 99.0)
_LOWEST_POWER = 1e-3  # as a share of the image's mean power: 30 dB below it


class Panel(NamedTuple):
    """What one row of the picture shows, all in the units of the target.

    Attributes:
        target_CHW: What was there.
        prediction_CHW: What the decoder predicts.
        mask_HW: True where the encoder saw nothing.
        absent: Bands that the scene did not have.
    """

    target_CHW: Array
    prediction_CHW: Array
    mask_HW: Array
    absent: tuple[str, ...] = ()


def display_image(target_CHW: Array, images_CHW: Array, spec: ModalitySpec) -> Array:
    """Target-like channels as a picture in [0, 1], stretched by the percentiles of the true target.

    Power is shown in decibels; pixels through the display bands of the modality, one stretch for each band.

    Args:
        target_CHW: The true target, which gives the stretch.
        images_CHW: What is shown: target, prediction or a mixture.
        spec: The modality.

    Returns:
        (H, W, 3); one display band comes as grey.
    """
    bands = [0] if spec.target == "power" else list(spec.display)
    reference_DHW, shown_DHW = target_CHW[bands].astype(np.float64), images_CHW[bands].astype(np.float64)
    if spec.target == "power":
        floor = _LOWEST_POWER * max(float(reference_DHW.mean()), np.finfo(np.float64).tiny)
        reference_DHW, shown_DHW = _decibel(reference_DHW, floor), _decibel(shown_DHW, floor)
    low_D, high_D = np.percentile(reference_DHW, _STRETCH_PERCENTILES, axis=(1, 2))
    span_D = np.maximum(high_D - low_D, 1e-6)
    picture_DHW = np.clip((shown_DHW - low_D[:, None, None]) / span_D[:, None, None], 0.0, 1.0)
    return np.moveaxis(np.broadcast_to(picture_DHW, (3, *picture_DHW.shape[1:])), 0, -1)


def reconstruction_figure(spec: ModalitySpec, panels: list[Panel]) -> Figure:
    """Draws masked input, reconstruction and target of some images of one modality, one image a row.

    The reconstruction shows the prediction where the input was masked, for only there is the decoder trained (Eq. 6),
    and the target elsewhere.

    Args:
        spec: The modality: display bands, and whether the target is power (then all three are shown in dB).
        panels: The images.
    """
    unit = "power, dB" if spec.target == "power" else "-".join(spec.bands[band] for band in spec.display)
    titles = ("masked input", "reconstruction", "target")
    figure = new_figure(6.2, 0.75 + 2.05 * len(panels))
    figure.suptitle(f"{spec.title} ({unit})", fontsize=11)
    axes = np.asarray(figure.subplots(len(panels), len(titles), squeeze=False))
    for row, panel in enumerate(panels):
        mixed_CHW = np.where(panel.mask_HW, panel.prediction_CHW, panel.target_CHW)
        shown = [display_image(panel.target_CHW, image, spec) for image in (panel.target_CHW, mixed_CHW)]
        masked = shown[0].copy()
        masked[panel.mask_HW.astype(bool)] = _MASK_COLOUR
        for axis, title, image in zip(axes[row], titles, (masked, shown[1], shown[0]), strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
        if panel.absent:
            axes[row, 0].set_xlabel(f"absent: {', '.join(panel.absent)}", fontsize=8)
    return figure


def _decibel(power: Array, floor: float) -> Array:
    return np.asarray(10.0 * np.log10(np.maximum(power, floor)))

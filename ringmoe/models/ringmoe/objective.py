"""What RingMoE learns from: targets (Eq. 5), masked error (Eq. 6) and the balance of its experts (Eq. 4)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ringmoe.batch import Routing
from ringmoe.modality import ModalitySpec
from ringmoe.moe.balance import balance_losses

# B images, C channels of the input, T channels of the target, H x W pixels, L layers, M modalities


def target(pixels_BCHW: Tensor, present_BC: Tensor, spec: ModalitySpec) -> tuple[Tensor, Tensor]:
    """What the decoder of a modality shall reconstruct (Eq. 5), from what the encoder sees before masking.

    Power is the sum of I^2 + Q^2 over the bands that are present. The input is scaled for it to have unit variance,
    as the pixels of other modalities have, whether a scene has four polarisations or two.

    Args:
        pixels_BCHW: (B, C, H, W) normalised pixels.
        present_BC: (B, C) bool; at least one channel of each image is present.
        spec: The modality.

    Returns:
        target_BTHW: (B, T, H, W) float32.
        present_BT: (B, T) bool, which of its channels there is something to learn from.
    """
    pixels_BCHW = pixels_BCHW.float()
    if spec.target == "pixels":
        return pixels_BCHW, present_BC
    present_BC11 = present_BC[:, :, None, None]
    power_B1HW = torch.where(present_BC11, pixels_BCHW.square(), 0).sum(1, keepdim=True)
    return power_B1HW, present_BC.any(1, keepdim=True)


def normalise_locally(target_BTHW: Tensor, window: int) -> Tensor:
    """SimMIM's target normalisation: each pixel by mean and deviation of the window around it, cut at the edges.

    Args:
        target_BTHW: (B, T, H, W) float32.
        window: Side of the window in pixels, odd.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)

    num_11HW = F.avg_pool2d(torch.ones_like(target_BTHW[:1, :1]), window, 1, window // 2, divisor_override=1)
    mean_BTHW = mean(target_BTHW)
    variance_BTHW = (mean(target_BTHW.square()) - mean_BTHW.square()).clamp(min=0)
    variance_BTHW = variance_BTHW * num_11HW / (num_11HW - 1)
    return (target_BTHW - mean_BTHW) / (variance_BTHW + 1e-6).sqrt()


class Reconstruction(NamedTuple):
    """What the decoder of one modality made of its masked images, and what it should have made.

    Attributes:
        prediction_BTHW: (B, T, H, W) reconstruction.
        target_BTHW: (B, T, H, W) float32, the target of Eq. 5.
        mask_BHW: (B, H, W) bool, True where the encoder saw nothing.
        present_BT: (B, T) bool, False for channels that the scene does not have.
    """

    prediction_BTHW: Tensor
    target_BTHW: Tensor
    mask_BHW: Tensor
    present_BT: Tensor


def masked_error(images: Reconstruction, kind: Literal["l2", "l1"] = "l2") -> Tensor:
    """Mean error of one modality over its masked pixels in present channels: one term of Eq. 6's sum.

    Args:
        images: The images of the modality.
        kind: Squared (Eq. 6) or absolute (SimMIM) error.

    Returns:
        Scalar, float32.
    """
    difference_BTHW = images.prediction_BTHW.float() - images.target_BTHW
    error_BTHW = difference_BTHW.square() if kind == "l2" else difference_BTHW.abs()
    counted_BTHW = images.mask_BHW[:, None] & images.present_BT[:, :, None, None]
    return torch.where(counted_BTHW, error_BTHW, 0).sum() / counted_BTHW.sum()


def balance(routings: Sequence[Routing], num_specialised: int) -> tuple[Tensor, Tensor]:
    """The balance losses of Eq. 4, averaged over the layers: collaborative, and (M,) specialised of each modality."""
    losses = [balance_losses(routing, num_specialised) for routing in routings]
    collaborative_L, specialised_LM = (torch.stack(parts) for parts in zip(*losses, strict=True))
    return collaborative_L.mean(), specialised_LM.mean(0)

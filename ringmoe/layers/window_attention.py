"""SwinV2's attention: cosine similarity inside (shifted) windows, with a log-spaced continuous position bias.

Liu et al., "Swin Transformer V2", 2022, Sec. 3. Attention is plain matrix products and a softmax: on CPUs the fused
kernels of PyTorch are slower with a learned bias. What depends on the size of the map only - which tokens a shifted
window must not mix, where two tokens of a window lie relative to each other - is computed once per size and device.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ringmoe.layers.init import Kind

# B images, H x W tokens of the map, G windows of an image, N tokens of a window, D width, A heads, Z width of a head,
# R relative positions

_BIAS_HIDDEN = 512  # hidden width of the position-bias MLP
_BIAS_RANGE = 16.0  # position biases lie between 0 and this
_MAX_LOGIT_SCALE = math.log(100.0)
_KEPT_SIZES = 128  # masks and tables kept: a handful for each input size in use


@dataclass(frozen=True)
class WindowGrid:
    """How a map is cut into windows.

    Attributes:
        height: Rows of the map.
        width: Columns of the map.
        window: Rows and columns of a window: the wanted side, or the whole map where that is smaller.
        shift: Rows and columns by which the windows are shifted; 0 along a side that fits one window.
    """

    height: int
    width: int
    window: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def over(cls, height: int, width: int, window: int, shifted: bool) -> "WindowGrid":
        """The grid of (shifted) windows of side ``window`` over a map."""
        rows, cols = ((min(side, window), window // 2 if shifted and side > window else 0) for side in (height, width))
        return cls(height, width, (rows[0], cols[0]), (rows[1], cols[1]))

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros that fill up the last windows."""
        return -self.height % self.window[0], -self.width % self.window[1]

    @property
    def counts(self) -> tuple[int, int]:
        """Windows down and across."""
        return -(-self.height // self.window[0]), -(-self.width // self.window[1])

    def split(self, x_BHWD: Tensor) -> Tensor:
        """Cuts a map into windows: (B, H, W, D) -> (B, G, N, D)."""
        if any(self.shift):
            x_BHWD = x_BHWD.roll((-self.shift[0], -self.shift[1]), (1, 2))
        if any(self.padding):  # after the roll, as in timm: only so do weights give the same numbers in both
            x_BHWD = F.pad(x_BHWD, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        (rows, cols), (down, across) = self.window, self.counts
        x_BGND = x_BHWD.reshape(len(x_BHWD), down, rows, across, cols, -1).transpose(2, 3)
        return x_BGND.reshape(len(x_BHWD), down * across, rows * cols, -1)

    def join(self, x_BGND: Tensor) -> Tensor:
        """The inverse of ``split``: (B, G, N, D) -> (B, H, W, D)."""
        (rows, cols), (down, across) = self.window, self.counts
        x_BHWD = x_BGND.reshape(len(x_BGND), down, across, rows, cols, -1).transpose(2, 3)
        x_BHWD = x_BHWD.reshape(len(x_BGND), down * rows, across * cols, -1)[:, : self.height, : self.width]
        return x_BHWD.roll(self.shift, (1, 2)) if any(self.shift) else x_BHWD


@lru_cache(maxsize=_KEPT_SIZES)
def _seam_mask(grid: WindowGrid, device: torch.device) -> Tensor:
    """(G, 1, N, N): minus infinity between tokens that the shift brought together from opposite edges, else 0."""
    height, width = grid.height + grid.padding[0], grid.width + grid.padding[1]
    with torch.inference_mode(False):  # what is kept must also serve a later training step
        beyond_H = torch.arange(height, device=device) >= height - grid.shift[0]
        beyond_W = torch.arange(width, device=device) >= width - grid.shift[1]
        side_HW = 2 * beyond_H[:, None] + beyond_W
        side_GN = WindowGrid(height, width, grid.window, (0, 0)).split(side_HW[None, :, :, None])[0, :, :, 0]
        mask_GNN = torch.zeros(*side_GN.shape, side_GN.shape[1], device=device)
        return mask_GNN.masked_fill_(side_GN[:, :, None] != side_GN[:, None, :], -math.inf)[:, None]


@lru_cache(maxsize=_KEPT_SIZES)
def _relative_positions(window: tuple[int, int], reference: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The log-spaced relative coordinates of a window, and which of them lies between each two tokens.

    Args:
        window: Rows and columns of the window.
        reference: Side of the window that the position bias was learned with; its edge maps to log2(9) / 3.
        device: Where the tables shall live.

    Returns:
        coordinates_R2: (R, 2) float32, R = (2 * rows - 1) * (2 * columns - 1).
        index_NN: (N, N) int64 into R.
    """
    rows, cols = window
    with torch.inference_mode(False):
        offsets = torch.cartesian_prod(
            torch.arange(1 - rows, rows, device=device, dtype=torch.float32),
            torch.arange(1 - cols, cols, device=device, dtype=torch.float32),
        )
        scaled = offsets * (8.0 / max(reference - 1, 1))
        coordinates_R2 = scaled.sign() * torch.log2(scaled.abs() + 1.0) / 3.0
        row_N = torch.arange(rows, device=device).repeat_interleave(cols)
        col_N = torch.arange(cols, device=device).repeat(rows)
        row_NN = row_N[:, None] - row_N + rows - 1
        return coordinates_R2, row_NN * (2 * cols - 1) + col_N[:, None] - col_N + cols - 1


class WindowAttention(nn.Module):
    """Multi-head cosine attention inside windows.

    Args:
        dim: Width, D.
        num_heads: Heads, A.
        window: Side of a window in tokens; a smaller map is one window.
        shifted: Whether windows are shifted by half their side (along sides that hold more than one).
        reference_window: Side of the window at the size that the model is trained for. Position biases are continuous
            in coordinates relative to it, so that other window sizes extend the same function.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {"q_bias": "zeros", "v_bias": "zeros", "logit_scale": "log10"}

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool, reference_window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.shifted = shifted
        self.reference_window = reference_window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))
        self.logit_scale = nn.Parameter(torch.empty(num_heads))
        self.position_bias = nn.Sequential(
            nn.Linear(2, _BIAS_HIDDEN), nn.ReLU(), nn.Linear(_BIAS_HIDDEN, num_heads, bias=False)
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """Attends inside the windows of a map: (B, H, W, D) -> (B, H, W, D); logits and softmax in float32."""
        grid = WindowGrid.over(x_BHWD.shape[1], x_BHWD.shape[2], self.window, self.shifted)
        # queries and values have a bias, keys have none: the published SwinV2
        bias_3D = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(grid.split(x_BHWD), self.qkv.weight, bias_3D)
        q_BGANZ, k_BGANZ, v_BGANZ = qkv.view(*qkv.shape[:3], 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        # the scale multiplies the queries and not the logits, of which there are N / Z times as many
        q_BGANZ = _of_length(q_BGANZ, self._scale()[:, None, None].to(q_BGANZ.dtype))
        logits_BGANN = q_BGANZ @ _of_length(k_BGANZ, 1.0).transpose(-2, -1)
        weights_BGANN = (logits_BGANN + self._bias(grid)).softmax(dim=-1).to(v_BGANZ.dtype)
        y_BGND = (weights_BGANN @ v_BGANZ).transpose(2, 3).flatten(3)
        return grid.join(self.proj(y_BGND))

    def _scale(self) -> Tensor:
        """(A,) inverse temperatures, at most 100."""
        return self.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()

    def _bias(self, grid: WindowGrid) -> Tensor:
        """(G or 1, A, N, N) what is added to the logits, float32 or wider: position bias and seams of the shift."""
        weight = self.proj.weight
        coordinates_R2, index_NN = _relative_positions(grid.window, self.reference_window, weight.device)
        raw_RA = self.position_bias(coordinates_R2.to(weight.dtype))
        table_RA = _BIAS_RANGE * raw_RA.to(torch.promote_types(raw_RA.dtype, torch.float32)).sigmoid()
        # an embedding's gradient is summed in one order; that of plain indexing is not where threads share the work
        bias_ANN = F.embedding(index_NN, table_RA).permute(2, 0, 1)
        return bias_ANN + _seam_mask(grid, weight.device) if any(grid.shift) else bias_ANN[None]


def _of_length(x: Tensor, length: Tensor | float) -> Tensor:
    """Vectors along the last dimension, stretched to ``length``; zeros (padding) stay zeros."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (length / norm.clamp(min=1e-12))

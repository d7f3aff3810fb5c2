"""The picture of who uses which expert: layer x expert for every modality (the frequencies of App. B.4, Eq. 15)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ringmoe.report.canvas import new_figure

# L layers, M modalities, E experts that one modality may choose from: N_S specialised ones, then the collaborative ones


def relative_load(counts_LME: NDArray[Any], num_specialised: int) -> NDArray[np.float64]:
    """How much of its family's tokens an expert takes, 1 being its fair share; NaN where a family got no token.

    Args:
        counts_LME: (L, M, E) tokens of modality m that selected expert e in layer l.
        num_specialised: N_S, where the collaborative family begins.
    """
    counts_LME = np.asarray(counts_LME, dtype=np.float64)
    parts = []
    for family_LMF in np.split(counts_LME, [num_specialised], axis=2):
        total_LM1 = family_LMF.sum(axis=2, keepdims=True)
        fair_LM1 = np.where(total_LM1 > 0, total_LM1, np.nan) / max(family_LMF.shape[2], 1)
        parts.append(family_LMF / fair_LM1)
    return np.concatenate(parts, axis=2)


def expert_load_figure(
    counts_LME: NDArray[Any], modalities: Sequence[str], *, num_specialised: int, title: str = "expert load"
) -> Figure:
    """Draws one panel for each modality: rows are layers, columns its specialised and the collaborative experts.

    White is the fair share, blue less, red more; an expert that no token selected is marked with a cross.

    Args:
        counts_LME: (L, M, E) tokens of modality m that selected expert e in layer l.
        modalities: Names of the M modalities.
        num_specialised: N_S, where the collaborative family begins.
        title: What stands above the panels.
    """
    load_LME = relative_load(counts_LME, num_specialised)
    num_layers, num_modalities, num_experts = load_LME.shape
    most = max(num_specialised, num_experts - num_specialised, 2)
    norm = TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=float(most))
    figure = new_figure(max(1.2 + num_modalities * (0.6 + 0.3 * num_experts), 3.6), 1.6 + 0.28 * num_layers)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("experts: S specialised, C collaborative, x unused", fontsize=8)
    axes = figure.subplots(1, num_modalities, sharey=True, squeeze=False)[0]
    names = [f"S{e}" if e < num_specialised else f"C{e - num_specialised}" for e in range(num_experts)]
    for m, axis in enumerate(axes):
        image = axis.imshow(load_LME[:, m], cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
        dead_layers, dead_experts = np.nonzero(load_LME[:, m] == 0)
        axis.plot(dead_experts, dead_layers, "x", color="white", markersize=4)
        if 0 < num_specialised < num_experts:
            axis.axvline(num_specialised - 0.5, color="black", linewidth=1.2)
        axis.set_title(modalities[m], fontsize=10)
        axis.set_xticks(range(num_experts), names, fontsize=7)
        axis.set_facecolor("0.85")
        axis.tick_params(length=0)
    axes[0].set_ylabel("layer", fontsize=9)
    axes[0].set_yticks(range(num_layers), [str(layer) for layer in range(num_layers)], fontsize=7)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.03, pad=0.01)
    bar.set_label("load / fair share", fontsize=8)
    bar.set_ticks([0, 0.5, 1, *range(2, most + 1)])
    bar.ax.tick_params(labelsize=7)
    return figure

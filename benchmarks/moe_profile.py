"""Where the time of the RMoE layer goes, forward and backward, ours and DeepSpeed's, by kind of operator.

python benchmarks/moe_profile.py
"""

from collections.abc import Iterator

from contestants import Cell, peers, seat
from harness import Found, Profile, collect, one_thread, progress, shares_of

FAMILY = "RMoE layer, operators"
CELLS = [Cell("bf16", 448, 8192)]
OPERATORS = {
    "products": ("mm", "addmm", "addmm_", "addmv_", "bmm", "baddbmm"),
    "GELU and its derivative": ("gelu", "gelu_backward"),
    "moving rows": ("index_select", "index", "index_add", "index_add_", "gather", "scatter_", "cat", "copy_", "sort"),
    "sums and multiples": ("sum", "mul", "mul_", "add", "add_", "div"),
}


def claims() -> Iterator[Found]:
    """A profile of each."""
    one_thread()
    for cell in progress(CELLS, FAMILY):
        for name in peers():
            yield Profile(name=name, setting=str(cell), shares=shares_of(seat(cell, name).step, OPERATORS))


if __name__ == "__main__":
    collect(claims())

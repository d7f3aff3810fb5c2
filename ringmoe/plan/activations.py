"""What autograd keeps of a micro-batch for the backward pass, term by term beside the code that keeps it.

Every function counts one module and names what it keeps. Counted are storages: a view costs nothing, and what two
operations keep is counted where it is made. Parameters are counted elsewhere.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ringmoe import modality
from ringmoe.layers.window_attention import WindowGrid
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.config import Recompute
from ringmoe.moe.ffn import row_multiple

# T tokens of a micro-batch, W of them with the padding of windows, N tokens of a window, D width, F hidden width,
# A heads, K experts that a token selects, R rows (a token once for each of its experts)

FLOAT32 = 4
INT64 = 8
_BIAS_HIDDEN = 512  # hidden width of the position-bias MLP
Terms = Counter[str]
HIDDEN = ("moe: hidden", "moe: shared hidden")  # what experts need not keep


@dataclass(frozen=True)
class Activations:
    """Bytes that one rank keeps of a micro-batch.

    Attributes:
        nothing: With nothing recomputed, by term.
        experts: With experts that keep no hidden values, by term.
        blocks: With blocks that keep their input only, by term; the largest block's own come back one at a time.
        transient: The largest short-lived tensors of one block's backward pass, an estimate.
    """

    nothing: Mapping[str, int]
    experts: Mapping[str, int]
    blocks: Mapping[str, int]
    transient: int

    def total(self, recompute: Recompute) -> int:
        """The most that is kept at one time, where so much is recomputed."""
        terms = {"nothing": self.nothing, "experts": self.experts, "blocks": self.blocks}
        return sum(terms[recompute].values())


@lru_cache(maxsize=1024)
def _activations(
    model: RingMoEConfig, images: tuple[tuple[str, int], ...], item_bytes: int, expert_parallel: int
) -> Activations:
    num_images = dict(images)
    outside = outside_blocks(model, num_images, item_bytes)
    blocks = [block_terms(model, block, num_images, item_bytes, expert_parallel) for block in range(model.num_blocks)]
    inputs: Terms = Counter()
    for block in range(model.num_blocks):
        inputs["block inputs"] += _tokens(model, model.stage_of(block), num_images) * _width(model, block) * item_bytes
    for stage in range(len(model.depths)):
        inputs["noise keys"] += _tokens(model, stage, num_images) * INT64
    largest = max(blocks, key=lambda terms: terms.total())
    kept = sum(blocks, start=outside)
    return Activations(
        nothing=kept,
        experts=Counter({term: num for term, num in kept.items() if term not in HIDDEN}),
        blocks=outside + inputs + Counter({"one block, recomputed": largest.total()}),
        transient=max(
            _transient(model, block, num_images, item_bytes, expert_parallel) for block in range(model.num_blocks)
        ),
    )


def activations(
    model: RingMoEConfig, images: Mapping[str, int], item_bytes: int, expert_parallel: int = 1
) -> Activations:
    """Counts a micro-batch whose routing is balanced.

    Args:
        model: The model.
        images: Images of each modality.
        item_bytes: Bytes of an activation: 2 in bf16, 4 in fp32.
        expert_parallel: Ranks that share the experts.
    """
    return _activations(model, tuple(images.items()), item_bytes, expert_parallel)


def outside_blocks(model: RingMoEConfig, images: Mapping[str, int], item_bytes: int) -> Terms:
    """What embedding, merging, the last norm, decoders and error keep."""
    terms: Terms = Counter()
    for key, num in images.items():
        spec = modality.get(key)
        pixels = num * model.image_size**2
        tokens = num * model.map_size(0) ** 2
        terms["embedding: patches"] += pixels * spec.num_channels * item_bytes
        terms["embedding: norm"] += tokens * (model.dims[0] * item_bytes + 2 * FLOAT32 + 1)  # and what is masked
        # the difference to the target, and which pixels count
        terms["error"] += pixels * spec.num_target_channels * (FLOAT32 + 1)
    for stage, (before, after) in enumerate(pairwise(model.dims), start=1):
        tokens = _tokens(model, stage, images)
        terms["merging"] += tokens * ((4 * before + after) * item_bytes + 2 * FLOAT32)
    last = _tokens(model, len(model.dims) - 1, images)
    terms["last norm"] += last * (2 * model.dims[-1] * item_bytes + 2 * FLOAT32)  # its input, and the decoders'
    return terms


def block_terms(
    model: RingMoEConfig, block: int, images: Mapping[str, int], item_bytes: int, expert_parallel: int = 1
) -> Terms:
    """What one block keeps: attention, RMoE layer, and the inputs of the two norms behind them."""
    tokens, dim = _tokens(model, model.stage_of(block), images), _width(model, block)
    norms = Counter({"norms": 2 * tokens * (dim * item_bytes + 2 * FLOAT32)})
    attention = attention_terms(model, block, images, item_bytes)
    return attention + moe_terms(model, block, tokens, item_bytes, expert_parallel) + norms


def attention_terms(model: RingMoEConfig, block: int, images: Mapping[str, int], item_bytes: int) -> Terms:
    """What ``ringmoe/layers/window_attention.py`` keeps."""
    stage, dim = model.stage_of(block), _width(model, block)
    side = model.map_size(stage)
    grid = WindowGrid.over(side, side, model.window, shifted=False)
    in_window = grid.window[0] * grid.window[1]
    tokens = sum(images.values()) * grid.counts[0] * grid.counts[1] * in_window
    heads = dim // model.head_dim
    relative = (2 * grid.window[0] - 1) * (2 * grid.window[1] - 1)
    # bf16: the softmax is taken in fp32 and kept once more in bf16 for the product with the values
    of_weight = FLOAT32 + (item_bytes if item_bytes < FLOAT32 else 0)
    return Counter(
        {
            "attention: windows": tokens * dim * item_bytes,  # input of qkv, cut into windows
            "attention: qkv": 3 * tokens * dim * item_bytes,
            "attention: lengths": 6 * tokens * heads * item_bytes,  # norm, its clamp or inverse, factor; of q and k
            "attention: q, k, v": 3 * tokens * dim * item_bytes,  # of unit length, and laid out for the products
            "attention: weights": tokens * in_window * heads * of_weight,
            "attention: mixed": tokens * dim * item_bytes,  # input of the last projection
            "attention: position bias": relative * (_BIAS_HIDDEN * item_bytes + heads * FLOAT32),
        }
    )


def moe_terms(model: RingMoEConfig, block: int, tokens: int, item_bytes: int, expert_parallel: int = 1) -> Terms:
    """What ``ringmoe/moe`` keeps of a layer: router, dispatch, experts, combination, shared expert.

    Args:
        model: The model.
        block: The layer.
        tokens: T, of all modalities.
        item_bytes: Bytes of an activation.
        expert_parallel: Ranks that share the experts; a rank receives as many rows as it sends.
    """
    dim = _width(model, block)
    hidden = model.mlp_ratio * dim
    terms: Terms = Counter({"moe: tokens": tokens * dim * item_bytes})
    if model.shared:
        terms["moe: shared hidden"] = tokens * hidden * item_bytes  # before the GELU, which is taken again
    selected = rows_of_token(model, block)
    if not selected:
        return terms
    rows, experts = tokens * selected, len(model.modalities) * model.num_specialised
    experts += len(model.collaborative_ids(block))
    # those that fill up the experts' rows, with a flag for each row that tells which they are
    multiple = row_multiple(item_bytes)
    filled = rows + min(experts // expert_parallel, rows) * (multiple - 1)
    if item_bytes < FLOAT32:
        terms["moe: tokens in fp32"] = tokens * dim * FLOAT32  # what the gates read
    for family in (model.num_specialised, len(model.collaborative_ids(block))):
        # logits and spread, noise, probabilities; ids of all experts in order, of which the first K are used
        terms["moe: gates"] += tokens * family * (4 * FLOAT32 + INT64)
    terms["moe: gates of rows"] = filled * (FLOAT32 + (multiple > 1))
    terms["moe: rows"] = filled * dim * item_bytes
    terms["moe: hidden"] = filled * hidden * item_bytes
    # each selection's row, each row's token, and on other ranks the order in which they arrive and the way back
    terms["moe: places"] = (rows + filled) * INT64 + (0 if expert_parallel == 1 else 2 * rows * INT64)
    return terms


def rows_of_token(model: RingMoEConfig, block: int) -> int:
    """Routed experts that a token selects in a block, both families together."""
    return min(model.top_k, model.num_specialised) + min(model.top_k, len(model.collaborative_ids(block)))


def _transient(
    model: RingMoEConfig, block: int, images: Mapping[str, int], item_bytes: int, expert_parallel: int
) -> int:
    """Gradients that live while one block's attention or experts go backward, and rows under way between ranks."""
    tokens, dim = _tokens(model, model.stage_of(block), images), _width(model, block)
    weights = attention_terms(model, block, images, item_bytes)["attention: weights"]
    experts = 3 * tokens * model.mlp_ratio * dim * item_bytes  # of the shared expert, the largest
    rows = tokens * rows_of_token(model, block) * dim * item_bytes
    return max(2 * weights, experts) + (2 * rows if expert_parallel > 1 else rows)


def _tokens(model: RingMoEConfig, stage: int, images: Mapping[str, int]) -> int:
    return sum(images.values()) * model.map_size(stage) ** 2


def _width(model: RingMoEConfig, block: int) -> int:
    return model.dims[model.stage_of(block)]

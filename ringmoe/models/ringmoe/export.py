"""A dense RingMoE's weights under the names of timm's ``SwinTransformerV2``, for tools that know that one."""

from collections.abc import Mapping

from torch import Tensor

from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig

_BLOCK_NAMES = {
    "attention.qkv": "attn.qkv",
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "attention.logit_scale": "attn.logit_scale",
    "attention.position_bias.0": "attn.cpb_mlp.0",
    "attention.position_bias.2": "attn.cpb_mlp.2",
    "attention.proj": "attn.proj",
    "norm1": "norm1",
    "norm2": "norm2",
    "moe.shared.w1": "mlp.fc1.weight",
    "moe.shared.b1": "mlp.fc1.bias",
    "moe.shared.w2": "mlp.fc2.weight",
    "moe.shared.b2": "mlp.fc2.bias",
}


def to_timm(state: Mapping[str, Tensor], config: RingMoEConfig, key: str) -> dict[str, Tensor]:
    """Renames and reshapes the encoder of a dense model; embedding and norm are those of one modality.

    timm's SwinV2 has no absolute positions: ``positions`` is left out, and whoever wants the same numbers adds it to
    the output of timm's ``patch_embed``. Its head is left out too. Gradients map in the same way as weights.

    Args:
        state: Tensors by global name.
        config: The model they belong to; it has no routed experts.
        key: The modality whose embedding to take.

    Raises:
        ConfigError: The model has routed experts, or does not have the modality.
    """
    if config.num_routed or not config.shared:
        raise ConfigError("only a dense model is a SwinV2: merge the experts first (ringmoe-prune --mode ks, ka or kc)")
    spec_key = config.for_modalities((key,)).modalities[0]
    side = config.patch_size
    weight = state[f"embed.{spec_key}.weight"]
    found = {
        "patch_embed.proj.weight": weight.reshape(len(weight), -1, side, side),
        "patch_embed.proj.bias": state[f"embed.{spec_key}.bias"],
        "patch_embed.norm.weight": state[f"embed_norm.{spec_key}.weight"],
        "patch_embed.norm.bias": state[f"embed_norm.{spec_key}.bias"],
    }
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "blocks":
            found |= _block(rest, tensor, config)
        elif part == "merges":
            stage, _, rest = rest.partition(".")
            found[f"layers.{int(stage) + 1}.downsample.{rest}"] = tensor
        elif part == "norm":
            found[name] = tensor
    return found


def _block(name: str, tensor: Tensor, config: RingMoEConfig) -> dict[str, Tensor]:
    """One tensor of a block, ``name`` starting with the block's number."""
    number, _, rest = name.partition(".")
    block = int(number)
    stage = config.stage_of(block)
    start = next(ours for ours in _BLOCK_NAMES if rest == ours or rest.startswith(f"{ours}."))
    theirs = _BLOCK_NAMES[start] + rest.removeprefix(start)
    if start == "attention.logit_scale":
        tensor = tensor[:, None, None]
    elif start in ("moe.shared.w1", "moe.shared.w2"):
        tensor = tensor.T  # ours multiplies from the right: x @ w
    return {f"layers.{stage}.blocks.{block - sum(config.depths[:stage])}.{theirs}": tensor}

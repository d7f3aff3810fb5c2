"""RingMoE's architecture as numbers: what to build, and how much it will be, without building it.

The paper gives depths and dims (App. B.2), expert counts (App. B.2) and the image size (App. B.3). Heads, window, MLP
ratio, masking, top-K and the balance weight are not given; the defaults are those of SwinV2, SimMIM and Swin-MoE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from ringmoe import modality
from ringmoe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RingMoEConfig:
    """The encoder, its experts, the masking and the objective.

    Attributes:
        modalities: Keys of the modalities, in the order of the batch.
        image_size: Height and width of the input in pixels.
        patch_size: Pixels of one token along each side.
        depths: Blocks of each stage.
        dims: Width of each stage.
        head_dim: Width of one attention head; heads = dim / head_dim (not given by the paper).
        window: Window side in tokens, clipped to the feature map (not given by the paper).
        mlp_ratio: Hidden width of an FFN over its width (not given by the paper).
        num_specialised: Specialised experts of each modality, N_S (Eq. 1); 0 leaves the family out.
        num_collaborative: Collaborative experts, N_C (Eq. 2); 0 leaves the family out.
        shared: Whether there is a shared expert (Eq. 3). With it alone the block is a plain SwinV2 block.
        collaborative_kept: After expert pruning, the ids that survive in each block (Sec. 3.4.1); None keeps all.
        top_k: Experts that a token selects in each family, K (Eq. 13); clamped to those that survive.
        gate_noise: Whether the gates are noisy in training (Eq. 14).
        decoders: Whether the per-modality decoders are there (needed for pre-training, not for use).
        mask_unit: Side of a masking unit in pixels (SimMIM: 32).
        mask_ratio: Share of the units that is masked, rounded up (SimMIM: 0.6).
        loss: Reconstruction error on masked pixels: squared (Eq. 6) or absolute (SimMIM).
        target_norm_window: Side in pixels of SimMIM's sliding window that normalises the target (47 there); None
            (Eq. 5) does not.
        balance_weight: Weight of the balance loss, alpha (Eq. 7).
    """

    modalities: tuple[str, ...] = ("opt", "ms", "sar_l1", "sar_l2")
    image_size: int = 192
    patch_size: int = 4
    depths: tuple[int, ...] = (2, 2, 18, 2)
    dims: tuple[int, ...] = (448, 896, 1792, 3584)
    head_dim: int = 32
    window: int = 12
    mlp_ratio: int = 4
    num_specialised: int = 4
    num_collaborative: int = 4
    shared: bool = True
    collaborative_kept: tuple[tuple[int, ...], ...] | None = None
    top_k: int = 1
    gate_noise: bool = True
    decoders: bool = True
    mask_unit: int = 32
    mask_ratio: float = 0.6
    loss: Literal["l2", "l1"] = "l2"
    target_norm_window: int | None = None
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        """Checks that such a model can be built and trained.

        Raises:
            ConfigError: A setting is out of range, or two settings contradict each other.
        """
        self._check_encoder()
        self._check_experts()
        self._check_objective()

    def _check_encoder(self) -> None:
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ConfigError(f"modalities are {self.modalities}; expected one or more different keys")
        for key in self.modalities:
            modality.get(key)
        for name in ("image_size", "patch_size", "head_dim", "window", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if len(self.depths) != len(self.dims) or not self.depths or min(self.depths) < 1:
            raise ConfigError(
                f"depths are {self.depths}, dims {self.dims}; expected for each stage a depth of at least 1 and a width"
            )
        for dim in self.dims:
            if dim < 1 or dim % self.head_dim:
                raise ConfigError(
                    f"a stage is {dim} wide, which heads of {self.head_dim} do not divide; change dims or head_dim"
                )
        if self.image_size % self.stride:
            raise ConfigError(
                f"image_size {self.image_size} is no multiple of {self.stride}, the pixels under a token of the last "
                f"of {len(self.depths)} stages with patches of {self.patch_size}"
            )

    def _check_experts(self) -> None:
        if min(self.num_specialised, self.num_collaborative) < 0:
            raise ConfigError(
                f"num_specialised is {self.num_specialised} and num_collaborative {self.num_collaborative}; expected 0 "
                "or more"
            )
        if not (self.num_specialised or self.num_collaborative or self.shared):
            raise ConfigError("no experts at all: keep the shared one, or give a family at least one")
        families = [size for size in (self.num_specialised, self.num_collaborative) if size]
        if self.top_k < 1 or (families and self.top_k > min(families)):
            raise ConfigError(
                f"top_k is {self.top_k}; a token can select from 1 to {min(families, default=1)} experts of each family"
            )
        if self.collaborative_kept is None:
            return
        if len(self.collaborative_kept) != self.num_blocks:
            raise ConfigError(
                f"collaborative_kept speaks of {len(self.collaborative_kept)} blocks; the model has {self.num_blocks}"
            )
        for block, ids in enumerate(self.collaborative_kept):
            if list(ids) != sorted(set(ids) & set(range(self.num_collaborative))):
                raise ConfigError(
                    f"collaborative_kept of block {block} is {ids}; expected ids from 0 to "
                    f"{self.num_collaborative - 1}, ascending, each once"
                )

    def _check_objective(self) -> None:
        if self.mask_unit < 1 or self.mask_unit % self.patch_size or self.image_size % self.mask_unit:
            raise ConfigError(
                f"mask_unit is {self.mask_unit} pixels; expected a multiple of patch_size ({self.patch_size}) that "
                f"divides image_size ({self.image_size})"
            )
        if not 0.0 < self.mask_ratio < 1.0:
            raise ConfigError(f"mask_ratio is {self.mask_ratio}; expected a share between 0 and 1")
        if self.target_norm_window is not None and (self.target_norm_window < 3 or self.target_norm_window % 2 == 0):
            raise ConfigError(
                f"target_norm_window is {self.target_norm_window}; expected an odd number of at least 3 pixels, or none"
            )
        if self.balance_weight < 0.0:
            raise ConfigError(f"balance_weight is {self.balance_weight}; expected 0 or more")

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def stride(self) -> int:
        """Input pixels under one token of the last stage, along each side: 32 for four stages."""
        return int(self.patch_size * 2 ** (len(self.depths) - 1))

    @property
    def num_routed(self) -> int:
        """Experts that one modality may choose from: its specialised ones and the collaborative ones, pruned or not."""
        return self.num_specialised + self.num_collaborative

    def stage_of(self, block: int) -> int:
        """The stage that holds a block, both counted from 0.

        Raises:
            IndexError: There is no such block.
        """
        for stage, depth in enumerate(self.depths):
            if block < depth:
                return stage
            block -= depth
        raise IndexError("no such block")

    def map_size(self, stage: int) -> int:
        """Tokens along each side of a stage's map at ``image_size``."""
        return self.image_size // int(self.patch_size * 2**stage)

    def collaborative_ids(self, block: int) -> tuple[int, ...]:
        """Ids of the collaborative experts of a block."""
        return (
            tuple(range(self.num_collaborative)) if self.collaborative_kept is None else self.collaborative_kept[block]
        )

    def routed_columns(self, block: int) -> list[int]:
        """Where the experts of a block stand among the ``num_routed`` that a modality could choose from unpruned."""
        collaborative = [self.num_specialised + k for k in self.collaborative_ids(block)]
        return [*range(self.num_specialised), *collaborative]

    def for_modalities(self, keys: Sequence[str]) -> "RingMoEConfig":
        """The sub-model of some modalities: their embeddings, specialised experts and decoders, and all that is common.

        Raises:
            ConfigError: The model does not have one of them.
        """
        unknown = [key for key in keys if key not in self.modalities]
        if unknown or not keys:
            raise ConfigError(f"no sub-model of {list(keys)}: the model has {', '.join(self.modalities)}")
        return replace(self, modalities=tuple(key for key in self.modalities if key in keys))

    def pruned(self, kept: Sequence[Sequence[int]]) -> "RingMoEConfig":
        """The model after expert pruning (Sec. 3.4.1): only these collaborative experts survive in each block."""
        return replace(self, collaborative_kept=tuple(tuple(ids) for ids in kept))

    def dense(self) -> "RingMoEConfig":
        """The model after its experts became one FFN in each block (Sec. 3.4.2), which takes the shared one's place."""
        return replace(self, num_specialised=0, num_collaborative=0, shared=True, collaborative_kept=None, top_k=1)

    def variants(self) -> dict[str, "RingMoEConfig"]:
        """What the model can become by the paper's compression (Sec. 3.4), from the whole to the dense, by name.

        Expert pruning and merging are those of the first modality's sub-model; the others' differ by their embeddings
        and decoders only.
        """
        found = {"whole": self}
        if len(self.modalities) > 1:
            found |= {key: self.for_modalities((key,)) for key in self.modalities}
        first = self.for_modalities(self.modalities[:1])
        for share in (75, 50, 25) if self.num_collaborative else ():
            kept = tuple(range(-(-self.num_collaborative * share // 100)))
            found[f"{first.modalities[0]}, EP {share} %"] = first.pruned((kept,) * self.num_blocks)
        if self.num_routed:
            found[f"{first.modalities[0]}, dense"] = first.dense()
        return found

    def params(self) -> dict[str, int]:
        """Parameters of each part of the model: exactly those that the built model has."""
        return self._count(self.modalities, active=False)

    def num_params(self) -> int:
        """Parameters of the whole model."""
        return sum(self.params().values())

    def num_active_params(self, key: str) -> int:
        """Parameters that an image of one modality uses: of the experts, those that a token selects.

        Raises:
            ConfigError: The model does not have this modality.
        """
        return sum(self._count(self.for_modalities((key,)).modalities, active=True).values())

    def num_weights(self) -> int:
        """Matrices of FFNs, attention and merging alone: what the paper's sizes count (14.7 B, 6.5 B, 1 B)."""
        total = sum(4 * before * after for before, after in pairwise(self.dims))
        for block in range(self.num_blocks):
            num_ffns = len(self.modalities) * self.num_specialised + len(self.collaborative_ids(block)) + self.shared
            total += (4 + 2 * self.mlp_ratio * num_ffns) * self.dims[self.stage_of(block)] ** 2
        return total

    def flops_per_image(self, key: str) -> int:
        """Floating-point operations of a forward pass over one image, two for each multiply-accumulate.

        Counted are all matrix products that grow with the images: embedding, attention with its padding, gates with
        their noise, the selected experts, merging and decoder.

        Raises:
            ConfigError: The model does not have this modality.
        """
        spec = modality.get(self.for_modalities((key,)).modalities[0])
        macs = self.map_size(0) ** 2 * spec.num_channels * self.patch_size**2 * self.dims[0]
        for block in range(self.num_blocks):
            stage = self.stage_of(block)
            dim, side = self.dims[stage], self.map_size(stage)
            window = min(self.window, side)
            in_windows = (-(-side // window) * window) ** 2
            num_collaborative = len(self.collaborative_ids(block))
            num_ffns = min(self.top_k, self.num_specialised) + min(self.top_k, num_collaborative) + self.shared
            macs += in_windows * dim * (4 * dim + 2 * window**2)
            macs += side**2 * dim * 2 * (self.mlp_ratio * dim * num_ffns + self.num_specialised + num_collaborative)
        for stage, (before, after) in enumerate(pairwise(self.dims), start=1):
            macs += self.map_size(stage) ** 2 * 4 * before * after
        if self.decoders:
            macs += self.image_size**2 * spec.num_target_channels * self.dims[-1]
        return 2 * macs

    def training_flops(self, images: Mapping[str, int]) -> int:
        """Floating-point operations of a forward and a backward pass over so many images of each modality.

        Three times those of the forward pass: each of its products has two in the backward pass. What recomputation
        does twice counts once, and the optimiser does not count: this is the model's work, not the machine's.

        Raises:
            ConfigError: The model does not have one of them.
        """
        return 3 * sum(number * self.flops_per_image(key) for key, number in images.items())

    def _count(self, keys: Sequence[str], *, active: bool) -> dict[str, int]:
        """Parameters of each part, of the modalities ``keys`` only; of the experts all, or the active ones."""
        specs = [modality.get(key) for key in keys]
        first, last = self.dims[0], self.dims[-1]
        parts = {
            "embedding": sum(spec.num_channels * self.patch_size**2 * first + 3 * first for spec in specs) + first,
            "positions": self.map_size(0) ** 2 * first,
            "attention": 0,
            "routers": 0,
            "specialised": 0,
            "collaborative": 0,
            "shared": 0,
            "merging": sum((4 * before + 2) * after for before, after in pairwise(self.dims)),
            "norms": 2 * last,
            "decoders": sum((last + 1) * self.stride**2 * spec.num_target_channels for spec in specs) * self.decoders,
        }
        for block in range(self.num_blocks):
            dim, ids = self.dims[self.stage_of(block)], self.collaborative_ids(block)
            ffn = 2 * self.mlp_ratio * dim**2 + (self.mlp_ratio + 1) * dim
            num_heads = dim // self.head_dim
            parts["attention"] += 4 * dim**2 + 3 * dim + num_heads + 512 * (2 + 1 + num_heads)
            parts["routers"] += 2 * dim * (len(keys) * self.num_specialised + len(ids))
            most = self.top_k if active else self.num_routed
            parts["specialised"] += ffn * len(keys) * min(self.num_specialised, most)
            parts["collaborative"] += ffn * min(len(ids), most)
            parts["shared"] += ffn * self.shared
            parts["norms"] += 4 * dim
        return parts

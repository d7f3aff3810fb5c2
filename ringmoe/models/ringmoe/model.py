"""RingMoE (Sec. 3): a SwinV2 with hierarchical mixtures of experts, trained by masked reconstruction.

All modalities go through the encoder together: their tokens are concatenated, sorted by modality, so that attention,
routing and the exchange of tokens between ranks happen once for each block whatever the mixture.
"""

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ringmoe import counter, modality
from ringmoe.batch import Batch, ModalityImages, Routing
from ringmoe.errors import ConfigError
from ringmoe.layers.init import Kind
from ringmoe.layers.patch_embed import PatchEmbed
from ringmoe.layers.patch_merging import PatchMerging
from ringmoe.layers.pixel_head import PixelHead
from ringmoe.layers.positions import positions_at
from ringmoe.layers.swin_block import SwinBlock
from ringmoe.layers.window_attention import WindowAttention
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.masking import Mask, draw_mask
from ringmoe.models.ringmoe.objective import Reconstruction, balance, masked_error, normalise_locally, target
from ringmoe.moe.config import RMoEConfig
from ringmoe.moe.layer import RMoELayer
from ringmoe.moe.parallel import ExpertParallel

# B images (of one modality, or of all one after the other), C channels, H x W pixels or tokens, D width, T tokens of
# all images, M modalities, L blocks, E experts that one modality may choose from

_NOISE_SALT = counter.key("gate noise")


class Output(NamedTuple):
    """Loss and what it is made of.

    Attributes:
        loss: Scalar, Eq. 7.
        recon_M: (M,) masked error of each modality (Eq. 6); 0 for one that the batch does not hold.
        balance_collaborative: Scalar balance loss of the collaborative family (Eq. 4), mean over the blocks.
        balance_specialised_M: (M,) balance loss of each modality's specialised family, mean over the blocks.
        routing_counts_LME: (L, M, E) how many tokens of modality m selected expert e in block l: specialised experts
            first, then collaborative ones by original id (those that were pruned have 0).
        tokens_LM: (L, M) tokens of each modality in each block.
    """

    loss: Tensor
    recon_M: Tensor
    balance_collaborative: Tensor
    balance_specialised_M: Tensor
    routing_counts_LME: Tensor
    tokens_LM: Tensor


class _Encoded(NamedTuple):
    maps_BHWD: list[Tensor]  # one for each stage; the last one normalised
    routings: list[Routing]  # one for each block


class RingMoEBlock(SwinBlock):
    """A SwinV2 block with an RMoE layer as its feed-forward.

    Args:
        config: The model.
        index: The block's number, counted through all stages.
        parallel: The ranks that share the experts.
    """

    def __init__(self, config: RingMoEConfig, index: int, parallel: ExpertParallel) -> None:
        stage = config.stage_of(index)
        dim = config.dims[stage]
        attention = WindowAttention(
            dim,
            num_heads=dim // config.head_dim,
            window=config.window,
            shifted=(index - sum(config.depths[:stage])) % 2 == 1,
            reference_window=min(config.window, config.map_size(stage)),
        )
        super().__init__(attention, dim)
        experts = RMoEConfig(
            dim=dim,
            hidden=config.mlp_ratio * dim,
            modalities=config.modalities,
            num_specialised=config.num_specialised,
            collaborative_ids=config.collaborative_ids(index),
            shared=config.shared,
            top_k=config.top_k,
            gate_noise=config.gate_noise,
        )
        self.moe = RMoELayer(experts, index, parallel)

    def forward(
        self, x_BHWD: Tensor, sizes: tuple[int, ...], noise_keys_T: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One block; it returns plain tensors so that a wrapper can drop its activations and recompute them.

        Args:
            x_BHWD: (B, H, W, D) tokens, sorted by modality.
            sizes: Tokens of each modality.
            noise_keys_T: (T,) int64 random keys of the tokens, or None for gates without noise.

        Returns:
            (B, H, W, D) tokens and the fields of ``Routing``.
        """
        x_BHWD, routing = self.residuals(x_BHWD, lambda x_TD: self.moe(x_TD, sizes, noise_keys_T))
        return x_BHWD, *routing


class RingMoE(nn.Module):
    """Encoder, experts and decoders of all modalities of a config.

    Parameters are left empty: ``ringmoe.layers.init.initialise`` or a checkpoint fills them.

    Args:
        config: The architecture.
        parallel: The ranks that share the experts; None for one process that holds them all.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {"positions": "weight", "mask_token": "weight"}

    def __init__(self, config: RingMoEConfig, parallel: ExpertParallel | None = None) -> None:
        super().__init__()
        self.config = config
        self.parallel = parallel or ExpertParallel()
        self.specs = {key: modality.get(key) for key in config.modalities}
        first, last, side = config.dims[0], config.dims[-1], config.map_size(0)
        self.embed = nn.ModuleDict(
            {key: PatchEmbed(spec.num_channels, config.patch_size, first) for key, spec in self.specs.items()}
        )
        self.embed_norm = nn.ModuleDict({key: nn.LayerNorm(first) for key in self.specs})
        self.positions = nn.Parameter(torch.empty(1, side, side, first))
        self.mask_token = nn.Parameter(torch.empty(first))
        self.blocks = nn.ModuleList(RingMoEBlock(config, i, self.parallel) for i in range(config.num_blocks))
        self.merges = nn.ModuleList(PatchMerging(before, after) for before, after in pairwise(config.dims))
        self.norm = nn.LayerNorm(last)
        self.decoders = nn.ModuleDict(
            {key: PixelHead(last, spec.num_target_channels, config.stride) for key, spec in self.specs.items()}
            if config.decoders
            else {}
        )

    def forward(self, batch: Batch) -> Output:
        """Masks, encodes and reconstructs a micro-batch, and adds up its loss (Eq. 7).

        Args:
            batch: Images of the model's modalities, all of one size; a modality without images is allowed.

        Raises:
            ConfigError: The batch does not fit the model, or the model has no decoders.
        """
        reconstructions, routings = self._reconstruct(batch)
        zero = torch.zeros((), device=self.positions.device)
        recon_M = torch.stack(
            [
                masked_error(reconstructions[key], self.config.loss) if key in reconstructions else zero
                for key in self.config.modalities
            ]
        )
        collaborative, specialised_M = balance(routings, self.config.num_specialised)
        return Output(
            loss=recon_M.sum() + self.config.balance_weight * (collaborative + specialised_M.sum()),
            recon_M=recon_M,
            balance_collaborative=collaborative,
            balance_specialised_M=specialised_M,
            routing_counts_LME=torch.stack([self._by_id(i, r.counts_ME) for i, r in enumerate(routings)]),
            tokens_LM=torch.stack([routing.tokens_M for routing in routings]),
        )

    def reconstruct(self, batch: Batch) -> dict[str, Reconstruction]:
        """Masked images, reconstructed, for pictures and evaluation; see ``forward`` for the batch and errors."""
        return self._reconstruct(batch)[0]

    def features(self, images: ModalityImages, key: str, *, masked: bool = False) -> list[Tensor]:
        """The map of every stage, of images of one modality.

        Args:
            images: (B, C, H, W) images; H and W are multiples of the patch size, masked ones of the masking unit too.
            key: Their modality.
            masked: Hide from the encoder what pre-training would, instead of showing the images whole.

        Returns:
            (B, D, H, W) of each stage, its size halved and its width another from one to the next; the last normalised.

        Raises:
            ConfigError: The images do not fit the model.
        """
        checked = self._checked({key: images}, self.config.mask_unit if masked else self.config.patch_size)
        encoded = self._encode(checked, self._masks(checked) if masked else None)
        return [map_BHWD.permute(0, 3, 1, 2) for map_BHWD in encoded.maps_BHWD]

    def first_tokens(self, images: ModalityImages, key: str, *, masked: bool = False) -> Tensor:
        """(B, H, W, D) tokens before the first block, positions added; see ``features``."""
        checked = self._checked({key: images}, self.config.mask_unit if masked else self.config.patch_size)
        return self._first_tokens(checked, self._masks(checked) if masked else None)

    def _reconstruct(self, batch: Batch) -> tuple[dict[str, Reconstruction], list[Routing]]:
        if not self.decoders:
            raise ConfigError("this model has no decoders: it was made for use, not for pre-training (decoders: false)")
        images = self._checked(batch.images, max(self.config.stride, self.config.mask_unit))
        masks = self._masks(images)
        encoded = self._encode(images, masks)
        parts = torch.split(encoded.maps_BHWD[-1], [len(i.keys_B) for i in images.values()])
        reconstructions = {}
        for (key, of_key), z_BHWD in zip(images.items(), parts, strict=True):
            target_BTHW, present_BT = target(of_key.pixels_BCHW, of_key.present_BC, self.specs[key])
            if self.config.target_norm_window is not None:
                target_BTHW = normalise_locally(target_BTHW, self.config.target_norm_window)
            prediction_BTHW = self.decoders[key](z_BHWD)
            reconstructions[key] = Reconstruction(prediction_BTHW, target_BTHW, masks[key].pixels_BHW, present_BT)
        return reconstructions, encoded.routings

    def _encode(self, images: Mapping[str, ModalityImages], masks: Mapping[str, Mask] | None) -> _Encoded:
        """All images through all stages, z = f(E_e x + E_pos) of Sec. 3.2."""
        x_BHWD = self._first_tokens(images, masks)
        keys_B = torch.cat([of_key.keys_B for of_key in images.values()])
        num_images = [len(images[key].keys_B) if key in images else 0 for key in self.config.modalities]
        encoded = _Encoded([], [])
        blocks = iter(self.blocks)
        for stage, depth in enumerate(self.config.depths):
            if stage:
                x_BHWD = self.merges[stage - 1](x_BHWD)
            num_tokens = x_BHWD.shape[1] * x_BHWD.shape[2]
            sizes = tuple(num * num_tokens for num in num_images)
            noise_keys_T = self._noise_keys(keys_B, num_tokens)
            for block in islice(blocks, depth):
                x_BHWD, *routing = block(x_BHWD, sizes, noise_keys_T)
                encoded.routings.append(Routing(*routing))
            encoded.maps_BHWD.append(x_BHWD)
        encoded.maps_BHWD[-1] = self.norm(x_BHWD)
        return encoded

    def _masks(self, images: Mapping[str, ModalityImages]) -> dict[str, Mask]:
        return {key: draw_mask(of_key.keys_B, _size(of_key), self.config) for key, of_key in images.items()}

    def _first_tokens(self, images: Mapping[str, ModalityImages], masks: Mapping[str, Mask] | None) -> Tensor:
        """(B, H, W, D) tokens of all images, positions added: E_e x + E_pos of Sec. 3.2."""
        x_BHWD = torch.cat([self._embed(key, of_key, masks[key] if masks else None) for key, of_key in images.items()])
        return x_BHWD + positions_at(self.positions, (x_BHWD.shape[1], x_BHWD.shape[2]))

    def _embed(self, key: str, images: ModalityImages, mask: Mask | None) -> Tensor:
        """(B, H, W, D) tokens of one modality, without positions; what is masked is replaced by the mask token."""
        x_BHWD: Tensor = self.embed_norm[key](self.embed[key](images.pixels_BCHW, images.present_BC))
        return x_BHWD if mask is None else torch.where(mask.tokens_Bhw[..., None], self.mask_token, x_BHWD)

    def _noise_keys(self, keys_B: Tensor, num_tokens: int) -> Tensor | None:
        """(T,) a random key for each token of each image; None where gates are not noisy (Eq. 14: only in training)."""
        if not (self.training and self.config.gate_noise):
            return None
        places_N = counter.numbers(num_tokens, keys_B.device)
        return counter.mix(counter.mix(keys_B, _NOISE_SALT)[:, None], places_N).flatten()

    def _by_id(self, block: int, counts_ME: Tensor) -> Tensor:
        """(M, E) counts of a block with a column for every expert, pruned or not."""
        if self.config.collaborative_kept is None:
            return counts_ME
        spread_ME = counts_ME.new_zeros(len(counts_ME), self.config.num_routed)
        spread_ME[:, self.config.routed_columns(block)] = counts_ME
        return spread_ME

    def _checked(self, images: Mapping[str, ModalityImages], multiple: int) -> dict[str, ModalityImages]:
        """The images in the model's order of modalities, after checking that they fit."""
        unknown = [key for key in images if key not in self.specs]
        if unknown or not images:
            raise ConfigError(f"the batch holds {list(images) or 'nothing'}; the model has {', '.join(self.specs)}")
        sizes = {key: _size(of_key) for key, of_key in images.items()}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"images of one batch must have one size; here they have {sizes}")
        for key, of_key in images.items():
            if of_key.pixels_BCHW.shape[1] != self.specs[key].num_channels:
                raise ConfigError(
                    f"{key}: images of {of_key.pixels_BCHW.shape[1]} channels; expected "
                    f"{', '.join(self.specs[key].channels)}"
                )
            if any(side % multiple for side in sizes[key]):
                raise ConfigError(
                    f"{key}: images of {sizes[key][0]} x {sizes[key][1]} pixels; both must be multiples of {multiple}"
                )
        return {key: images[key] for key in self.specs if key in images}


def _size(images: ModalityImages) -> tuple[int, int]:
    """Height and width in pixels."""
    return images.pixels_BCHW.shape[2], images.pixels_BCHW.shape[3]

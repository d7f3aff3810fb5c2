"""RingMoE at the sizes that people train and use. A preset is a function; a variant edits a few fields of one.

Parameters are given exactly, with embeddings, norms, gates and decoders; "weights" are the matrices of FFNs, attention
and merging alone, which is what the paper's names count.
"""

from ringmoe.models.ringmoe.config import RingMoEConfig


def tiny() -> RingMoEConfig:
    """96 px, 8.8 M parameters: everything that the large ones have, small enough to learn on two CPU cores."""
    return RingMoEConfig(image_size=96, patch_size=8, depths=(2, 2, 2), dims=(32, 64, 128), head_dim=16, window=6)


def small() -> RingMoEConfig:
    """192 px, 46 M parameters: a first real run on one GPU."""
    return RingMoEConfig(depths=(2, 2, 2, 1), dims=(48, 96, 192, 384), head_dim=16)


def swin_88m() -> RingMoEConfig:
    """Experts on a SwinV2-B (Tab. 5): 1.22 B parameters for four modalities, 0.54 B for one."""
    return RingMoEConfig(dims=(128, 256, 512, 1024))


def swin_88m_dense() -> RingMoEConfig:
    """The SwinV2-B itself (Tab. 5), one modality: 90 M parameters with its decoder, 86.5 M weights."""
    return swin_88m().for_modalities(("opt",)).dense()


def ringmoe_14b() -> RingMoEConfig:
    """The paper's model for four modalities (App. B.2): 14.74 B weights, 14.78 B parameters."""
    return RingMoEConfig()


def ringmoe_6b() -> RingMoEConfig:
    """The paper's model of one modality, here optical: 6.53 B weights, 6.55 B parameters."""
    return ringmoe_14b().for_modalities(("opt",))


def ringmoe_1b() -> RingMoEConfig:
    """The SwinV2 under the paper's model, one FFN in each block: 1.06 B weights, 1.07 B parameters."""
    return ringmoe_6b().dense()

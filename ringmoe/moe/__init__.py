"""The RMoE layer: router, dispatcher, experts and balance, in one forward that reads like Section 3.2.1."""

from ringmoe.moe.balance import balance_losses
from ringmoe.moe.config import RMoEConfig
from ringmoe.moe.layer import RMoELayer
from ringmoe.moe.parallel import ExpertParallel

__all__ = ["ExpertParallel", "RMoEConfig", "RMoELayer", "balance_losses"]

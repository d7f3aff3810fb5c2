"""RingMoE: raw remote-sensing scenes to a trained and compressed hierarchical mixture of experts."""

__version__ = "0.1.0"

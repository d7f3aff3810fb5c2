"""RingMoE: configuration that counts itself, masking, objective, model, presets, export."""

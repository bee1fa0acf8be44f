"""The MoE layer: routing, experts, losses. Knows torch, and no ViT."""

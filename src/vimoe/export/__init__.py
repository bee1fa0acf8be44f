"""A finished model for elsewhere: ONNX and torch.export files that stay sparse, and the check that they agree."""

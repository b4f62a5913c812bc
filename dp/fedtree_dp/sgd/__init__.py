"""DP-SGD: per-sample gradients, clipping, noise."""

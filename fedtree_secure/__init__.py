"""Tree-structured federated LoRA with DP-SGD and secure aggregation: import from here alone."""

"""Tree secure aggregation: one masked upload per client, the sum of every node and nothing else."""

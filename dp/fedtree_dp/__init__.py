"""Differential privacy for adapters: budgets, accounting, ledger, noise and the DP-SGD engine."""

"""Budgets, events and epsilon. Imports no torch."""

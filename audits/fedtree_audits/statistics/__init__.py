"""Estimators, intervals and the rule that decides."""

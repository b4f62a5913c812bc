"""Audits: attack the running system and compare what leaks with what was claimed."""

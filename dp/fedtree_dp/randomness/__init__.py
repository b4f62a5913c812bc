"""Noise, sampling and single releases from a cryptographic stream."""

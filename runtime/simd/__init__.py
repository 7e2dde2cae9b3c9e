"""Logical vectors for Numba, and the only place that knows instruction sets."""

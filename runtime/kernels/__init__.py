"""Compute kernels, each written once in logical vectors, with a NumPy twin in ``reference.py``."""

"""Measuring the engine: rows of ``llmrun bench``, the machine's limits, energy, and what disturbs a run."""

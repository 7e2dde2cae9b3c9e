"""Compute: kernels, programs, models, tokenizers, samplers, and the engine that ties them together."""

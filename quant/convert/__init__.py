"""Hugging Face checkpoints as GGUF: names, hyper-parameters, tokenizers, and grids that are already 4-bit."""

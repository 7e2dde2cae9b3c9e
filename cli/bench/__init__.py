"""``llmrun bench``: a drop-in for llama-bench, and what that lacks."""

"""``python -m llmrun``."""

from .cli.app import main

main()

"""``python -m llmrun``."""

import sys

try:
    from .cli.app import main

    code = main()
except KeyboardInterrupt:  # while importing
    code = 130
sys.exit(code)

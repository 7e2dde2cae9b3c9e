"""``python -m llmrun``."""

import sys

try:
    from .cli.entry import repeat_lost_interrupts

    repeat_lost_interrupts()
    from .cli.app import main

    code = main()
except KeyboardInterrupt:  # while importing
    code = 130
sys.exit(code)

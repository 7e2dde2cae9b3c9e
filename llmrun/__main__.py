"""``python -m llmrun``."""

import sys

from .cli.entry import is_interrupt, repeat_lost_interrupts

try:
    repeat_lost_interrupts()
    from .cli.app import main

    code = main()
except BaseException as error:  # while importing
    if not is_interrupt(error):
        raise
    code = 130
sys.exit(code)

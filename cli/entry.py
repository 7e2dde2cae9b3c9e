"""Where the console script begins and ends. Imports next to nothing, so that Ctrl-C is quiet as early as can be."""

import gc
import os
import sys


def entry() -> None:
    """Run this process's command line and end the process at once, with the command's exit code.

    Taking Python's modules and threads down one by one takes 40 ms, and nothing here needs it: files are written
    and closed by the commands, and threads are the engine's own. ``python -m llmrun`` ends in the ordinary way.
    """
    gc.disable()  # while a program starts the collector finds nothing, again and again: 15 ms; see imports.py
    try:
        from .imports import ending_at_interrupt

        with ending_at_interrupt():
            from .app import main
        code = main()
    except KeyboardInterrupt:  # while it imports the little that it takes to look out for one
        code = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or its reader has gone
            continue
    os._exit(code)

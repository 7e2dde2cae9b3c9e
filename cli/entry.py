"""Where the console script begins and ends. Imports next to nothing, so that Ctrl-C is quiet as early as can be."""

import _thread
import gc
import os
import sys


def entry() -> None:
    """Run this process's command line and end the process at once, with the command's exit code.

    Taking Python's modules and threads down one by one takes 40 ms, and nothing here needs it: files are written
    and closed by the commands, and threads are the engine's own. ``python -m llmrun`` ends in the ordinary way.
    """
    os._exit(run())


def run() -> int:
    """Run this process's command line and return the command's exit code."""
    try:
        repeat_lost_interrupts()
        gc.disable()  # while a program starts the collector finds nothing, again and again: 15 ms; see imports.py
        from .imports import ending_at_interrupt

        with ending_at_interrupt():
            from .app import main
        code = main()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # closed, or its reader has gone
                continue
    except BaseException as error:  # before there is a command that looks out, or when nobody reads what is flushed
        if not is_interrupt(error):
            raise
        return 130
    return code


def repeat_lost_interrupts() -> None:
    """Let a Ctrl-C that comes where no exception can leave from come once more, a moment later.

    Python drops what is raised in a weak reference's callback or a finaliser, and importing a module has such a
    callback: of the interrupts that come while small modules are imported it would drop one in 750.
    """

    def drop(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(_thread.interrupt_main, ())  # raised here it would be dropped again
        elif not (unraisable.exc_type is AttributeError and getattr(unraisable.object, "__name__", "") == "__del__"):
            sys.__unraisablehook__(unraisable)  # not what says that an interrupt has left an object half made

    sys.unraisablehook = drop


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error is a Ctrl-C, or what Python has made of one that came while a class was made."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None

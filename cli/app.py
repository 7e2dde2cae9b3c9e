"""The command line's outermost layer: the only place that catches ``LlmrunError``.

Exit codes: 0, 1 for an error that the user can solve, 2 for wrong usage, 130 after Ctrl-C.
``quick.py`` and ``commands.py`` read the command line; nothing is imported here that takes time,
so that Ctrl-C during the imports ends quietly too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from ..formats.errors import LlmrunError
from .render.text import escaped, styled


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        args: the arguments after the program's name; None: those of this process.
    """
    try:
        _prepare_process()
        from ..runtime.simd.isa import check_cpu  # before NumPy, which dies on a CPU that is too old

        check_cpu()
        _dispatch(sys.argv[1:] if args is None else list(args))
        sys.stdout.flush()  # here, where a closed pipe is expected
    except LlmrunError as error:
        print(f"{styled('error:', 'red', sys.stderr)} {escaped(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{styled('error:', 'red', sys.stderr)} out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has gone
        _drop_output()
        return 1
    except OSError as error:  # what has a name is told where it is opened; this is standard output, on a full disk
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        print(f"{styled('error:', 'red', sys.stderr)} {escaped(f'{where}{error.strerror or error}')}", file=sys.stderr)
        return 1
    except SystemExit as exit_:  # Typer ends every command with one
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def _dispatch(args: list[str]) -> None:
    """Carry out a command line: read it quickly if that is possible, or let Typer read it."""
    from .declare import UsageError, call
    from .quick import quick_read

    read = quick_read(args)
    if read is not None:
        with suppress(UsageError):  # nothing has happened yet; Typer says it with the usage line
            call(*read)
            return
    from .commands import app

    app(args=args, prog_name="llmrun")


def _prepare_process() -> None:
    """Make the streams take any text, SIGTERM leave the terminal as it was, and NumPy load quickly."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; without this a model file would get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal's own encoding with "?" for what it lacks; files and pipes get UTF-8.
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="replace")
    signal.signal(signal.SIGTERM, _end)
    # NumPy's linear algebra library would start a thread per processor when it is loaded (27 ms); nothing uses it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _drop_output() -> None:
    """Point standard output elsewhere: what could not be written would be tried again at exit, and complain."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature is fixed by the signal module
    raise SystemExit(128 + signum)

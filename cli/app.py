"""The command line's outermost layer: the only place that catches ``LlmrunError``.

Exit codes: 0, 1 for an error that the user can solve, 2 for wrong usage, 130 after Ctrl-C.
The commands themselves are put together in ``commands.py``; nothing is imported here that takes time,
so that Ctrl-C during the imports ends quietly too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
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
        from .commands import app

        app(args=None if args is None else list(args), prog_name="llmrun")
    except LlmrunError as error:
        print(f"{styled('error:', 'red', sys.stderr)} {escaped(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{styled('error:', 'red', sys.stderr)} out of memory", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone: point the descriptor elsewhere, or the flush at exit complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as exit_:  # Typer ends every command with one
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def _prepare_process() -> None:
    """Make the streams take any text, and SIGTERM leave the terminal as it was."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal's own encoding with "?" for what it lacks; files and pipes get UTF-8.
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="replace")
    signal.signal(signal.SIGTERM, _end)


def _end(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature is fixed by the signal module
    raise SystemExit(128 + signum)

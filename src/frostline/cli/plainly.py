"""Runs the linter without typer and rich, whose import alone takes longer; leaves the program as they would."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from frostline.cli.lint_options import LintOptions
from frostline.errors import FrostlineError

# What a shell reports of a program that Ctrl+C ended.
INTERRUPTED = 130


def run_plainly(options: LintOptions) -> NoReturn:
    """Lint as asked for, and leave.

    An error that Frostline raises on purpose is one message and an exit code. A reader that closes the pipe, such as
    ``head``, ends the program without a message.
    """
    from frostline.cli.lint_job import run_lint

    try:
        code = run_lint(options)
        sys.stdout.flush()
    except FrostlineError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - there is no console to print with
        code = error.exit_code
    except BrokenPipeError:
        leave_closed_pipe()
        code = 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # noqa: T201 - likewise
        code = INTERRUPTED
    sys.exit(code)


def leave_closed_pipe() -> None:
    """Give up standard output, whose reader is gone.

    What is left in the buffer would be written, and fail again, when Python shuts down.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

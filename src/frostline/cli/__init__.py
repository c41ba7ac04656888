"""Floor 6: arguments, progress and exit codes; no logic."""

from __future__ import annotations

import sys

from frostline.errors import MissingExtra
from frostline.extras import require


def main() -> None:
    """The command ``frostline``; says how to install what it needs where typer or rich is missing.

    Ctrl+C ends it with one line and 130, also while packages are still being imported.
    """
    try:
        _main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # noqa: T201 - the console may not be there yet
        sys.exit(130)


def _main() -> None:
    if sys.argv[1:2] == ["lint"]:
        from frostline.cli.lint_options import read_plainly

        options = read_plainly(sys.argv[2:])
        if options is not None:
            from frostline.cli.plainly import run_plainly

            run_plainly(options)
    try:
        for package in ("typer", "rich"):
            require(package, extra="cli", purpose="The command line")
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - there is no console to print with
        sys.exit(error.exit_code)
    from frostline.cli.app import run

    run()

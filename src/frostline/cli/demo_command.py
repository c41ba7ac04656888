"""``frostline demo``."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

import frostline
from frostline.errors import FrostlineError, MissingExtra

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline demo
  frostline demo S1
  frostline demo S1 --show > s1.py

Exit codes: that of the example, 0 if it ran; 2 wrong usage.
"""

# Modules whose package has another name, or comes with an extra of ours that is not `all`.
_BROUGHT_BY = {"lightning": "lightning", "transformers": "transformers"}


def _begun(incomplete: str) -> list[tuple[str, str]]:
    return [(name, _sentence(path)) for name, path in _scripts().items() if name.startswith(incomplete.upper())]


def demo(
    name: Annotated[
        str | None,
        typer.Argument(help="S1 to S9; they are listed without one.", metavar="NAME", autocompletion=_begun),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the script instead of running it.")] = False,
) -> None:
    """Run one of nine short scripts: a common mistake first, then how the library finds or prevents it.

    They need no data and no network, and take less than two minutes each on two cores. What a script prints goes to
    standard output as it is; what is run is said on standard error.
    """
    if name is None:
        if show:
            raise typer.BadParameter("which one? For example: frostline demo S1 --show", param_hint="--show")
        # Prose that is wider than this is hard to read; a terminal may be narrower.
        width = min(shutil.get_terminal_size().columns, 96)
        for each, path in _scripts().items():
            typer.echo(textwrap.fill(f"{each}  {_sentence(path)}", width, subsequent_indent="    "))
        typer.echo("\nfrostline demo S1 runs the first; frostline demo S1 --show prints its code.")
        return
    wanted = _known(name)
    path = _scripts()[wanted]
    if show:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    code = _run(wanted, path)
    if code:
        raise typer.Exit(code)


def folder() -> Path:
    """Where the scripts are: `frostline/demos` in a wheel, `examples` in a checkout.

    Raises:
        FrostlineError: they are in neither.

    Example:
        >>> sorted(path.name for path in folder().glob("s2_*.py"))
        ['s2_frozen_net.py']
    """
    package = Path(frostline.__file__).parent
    places = [package / "demos", package.parents[1] / "examples"]
    for place in places:
        if any(place.glob("s1_*.py")):
            return place
    raise FrostlineError(
        f"the scripts of `frostline demo` are neither in {places[0]} nor in {places[1]}\n"
        "  fix: install frostline from a wheel, or from a whole checkout"
    )


def _scripts() -> dict[str, Path]:
    """Name to file, in order."""
    return {path.name.partition("_")[0].upper(): path for path in sorted(folder().glob("s[1-9]_*.py"))}


def _sentence(path: Path) -> str:
    """The first of the script's docstring, without the script's name."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = said.partition("\n")[0]
    name, colon, rest = line.partition(": ")
    text = rest if colon and name.upper() == path.name.partition("_")[0].upper() else line
    return f"{text[:1].upper()}{text[1:]}"


def _known(name: str) -> str:
    """The name as it is listed, whatever its case.

    Raises:
        FrostlineError: there is no such script.
    """
    scripts = _scripts()
    wanted = name.strip().upper()
    if wanted in scripts:
        return wanted
    raise FrostlineError(
        f"there is no demo {name!r}: they are {', '.join(scripts)}\n  fix: frostline demo says what each is about"
    )


def _run(name: str, path: Path) -> int:
    """Run a script in a process of its own.

    Returns:
        Its exit code; 128 and the number of the signal where one ended it, as shells say it.

    Raises:
        MissingExtra: a package that it imports is not installed.
    """
    _require_imports(name, path)
    sys.stderr.write(f"{name}: python {path} (the code: frostline demo {name} --show)\n")
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        code = subprocess.run([sys.executable, str(path)], check=False).returncode  # noqa: S603 - a file of this package
    except KeyboardInterrupt:
        return 130
    return code if code >= 0 else 128 - code


def _require_imports(name: str, path: Path) -> None:
    """All that a script imports at its top, looked for and not imported, so that what is missing is said at once."""
    roots: dict[str, None] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0]: None for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots |= {node.module.partition(".")[0]: None}
    missing = [root for root in roots if importlib.util.find_spec(root) is None]
    if missing:
        extras = dict.fromkeys(["all", *(_BROUGHT_BY[root] for root in missing if root in _BROUGHT_BY)])
        packages = ", ".join(repr(root) for root in missing)
        raise MissingExtra(
            f"The demo {name} needs {packages}, which is not installed.\n"
            f"  fix: python -m pip install 'frostline[{','.join(extras)}]'"
        )

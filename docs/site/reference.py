"""The reference: a page for each room, with the public names of its ``__init__``, from their docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "frostline"
# `cli` and `attach` are not called from outside; frameworks stand in the guide of their own.
_LEFT_OUT = {"attach", "cli", "integrations"}


def pages() -> dict[str, str]:
    """Path to text."""
    found = {"reference/index.md": _first_page()}
    for room in rooms():
        names = public_names(PACKAGE / room / "__init__.py")
        lines = [f"# frostline.{room}", "", _said(PACKAGE / room / "__init__.py"), ""]
        for name, source in names.items():
            lines += [f"::: {source}", "    options:", f"      heading: {name}", ""]
        found[f"reference/{room}.md"] = "\n".join(lines)
    return found


def navigation() -> list[object]:
    """The entries of the navigation."""
    return ["reference/index.md", *({f"frostline.{room}": f"reference/{room}.md"} for room in rooms())]


def rooms() -> list[str]:
    """Rooms with public names, by the alphabet."""
    found = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return [room for room in found if room not in _LEFT_OUT and public_names(PACKAGE / room / "__init__.py")]


def public_names(init: Path) -> dict[str, str]:
    """Name to the dotted path where it is defined: what the file imports under the same name (``import x as x``)."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("frostline."):
            # `from frostline.room import part as part` in a room names a module, which has a page of its own or none.
            found |= {
                alias.asname: f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.asname == alias.name and not _is_module(f"{node.module}.{alias.name}")
            }
    return found


def _first_page() -> str:
    names = public_names(PACKAGE / "__init__.py")
    lines = [
        "# The reference",
        "",
        "From the docstrings: effects, guarantees, errors, and examples that the tests run.",
        "The names below are those of `frostline` itself; everything else is reached by its room.",
        "",
        "| name | room |",
        "|---|---|",
    ]
    for name, source in names.items():
        room = source.split(".")[1]
        lines.append(f"| [`frostline.{name}`]({room}.md#{source}) | [`frostline.{room}`]({room}.md) |")
    return "\n".join(lines) + "\n"


def _is_module(dotted: str) -> bool:
    path = PACKAGE.parent.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _said(init: Path) -> str:
    """What the room says of itself in its first line, behind its floor."""
    line = (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    said = line.partition(":")[2].strip()
    return said[:1].upper() + said[1:]

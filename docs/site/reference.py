"""The reference, from the docstrings: a page for each room, and one for each module whose path users write.

The page of a room has the public names of its ``__init__``; that of a module, the classes and functions in it.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "frostline"
# `cli` and `attach` are not called from outside; of `integrations`, each framework has a page.
_LEFT_OUT = {"attach", "cli", "integrations"}
MODULES = (
    "errors",
    "findings",
    "integrations.accelerate",
    "integrations.lightning",
    "integrations.timm",
    "integrations.transformers",
)


def pages() -> dict[str, str]:
    """Path to text."""
    found = {"reference/index.md": _first_page()}
    for room in rooms():
        file = PACKAGE / room / "__init__.py"
        found[f"reference/{room}.md"] = _page(room, _said(file), public_names(file))
    for module in MODULES:
        file = _file(module)
        names = public_names(file) or names_defined(file, f"frostline.{module}")
        found[f"reference/{module}.md"] = _page(module, _first_line(file), names)
    return found


def navigation() -> list[object]:
    """The entries of the navigation."""
    places = sorted([*rooms(), *MODULES])
    return ["reference/index.md", *({f"frostline.{place}": f"reference/{place}.md"} for place in places)]


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


def names_defined(file: Path, module: str) -> dict[str, str]:
    """Name to the dotted path of the public classes and functions that stand in a module."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    named = [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return {name: f"{module}.{name}" for name in named if not name.startswith("_")}


def _page(place: str, said: str, names: dict[str, str]) -> str:
    lines = [f"# frostline.{place}", "", said, ""]
    for name, source in names.items():
        lines += [f"::: {source}", "    options:", f"      heading: {name}", ""]
    return "\n".join(lines)


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


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
    said = _first_line(init).partition(":")[2].strip()
    return said[:1].upper() + said[1:]


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]

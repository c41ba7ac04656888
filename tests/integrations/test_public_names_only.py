"""An integration lives from what others promise: nothing private of a framework, nothing below the rooms of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import frostline.integrations

ROOM = Path(frostline.integrations.__file__).parent
FILES = sorted(ROOM.rglob("*.py"))


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def offences(source: str) -> list[str]:
    """Imports from inside of our rooms, and private names of anything that is not ``self``."""
    tree = ast.parse(source)
    found: list[str] = []
    for module, name in imports_of(tree):
        parts = module.split(".")
        if parts[0] == "frostline" and parts[1:2] != ["integrations"] and len(parts) > 2:
            found.append(f"{module} is inside of a room")
        if any(part.startswith("_") and part != "__future__" for part in [*parts, name]):
            found.append(f"{module}.{name} is private")
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        mine = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", *own}
        if not mine:
            found.append(f"{ast.unparse(node)} is private")
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOM)) for path in FILES])
def test_public_names_only(path: Path):
    assert offences(path.read_text()) == []


def test_the_check_bites():
    source = (
        "from frostline.freezing.hold import Hold\n"
        "from lightning.pytorch.trainer._x import y\n"
        "import frostline.state\n"
        "trainer.strategy._setup_model(model)\n"
        "self._mine = 1\n"
    )
    assert offences(source) == [
        "frostline.freezing.hold is inside of a room",
        "lightning.pytorch.trainer._x.y is private",
        "trainer.strategy._setup_model is private",
    ]

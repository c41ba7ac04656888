"""What names at the top of a file stand for, by imports and plain assignments alone: nothing is walked through.

Other files ask for this often, and walking through every file that somebody imports from would open all of a large
package for one line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from frostline.lint.torch_names import USUAL, shortest

# A file with more stars is an index of a package: looking for a name behind all of them opens the whole package.
_MOST_STARS = 8


class TopLevel:
    """The names that a file binds outside of functions.

    Args:
        body: its statements.
        module: its dotted name.
        is_package: it is an ``__init__.py``.
        own: the names of its own functions and classes.

    Attributes:
        names: name to the qualified name of what was imported, or is of this file.
        stars: the modules that all names were imported from; none where there are more than a few.
    """

    def __init__(self, body: Iterable[ast.stmt], module: str, is_package: bool, own: Iterable[str]) -> None:
        self._module = module
        self._is_package = is_package
        self.names: dict[str, str] = {name: f"{module}.{name}" for name in own if "." not in name}
        self.stars: list[str] = []
        self._look(body)
        if len(self.stars) > _MOST_STARS:
            self.stars.clear()

    def _look(self, body: Iterable[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ImportFrom):
                module = absolute(node, self._module, self._is_package)
                for alias in node.names:
                    if alias.name == "*":
                        self.stars.append(module)
                    else:
                        name = f"{module}.{alias.name}" if module else alias.name
                        self.names.setdefault(alias.asname or alias.name, shortest(name))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self.names.setdefault(alias.asname or top, shortest(alias.name if alias.asname else top))
            elif isinstance(node, ast.Assign):
                target = node.targets[0]
                qualified = self.qualified(node.value)
                if isinstance(target, ast.Name) and qualified:
                    self.names.setdefault(target.id, qualified)
            elif isinstance(node, ast.If):
                self._look(node.body)
                self._look(node.orelse)
            elif isinstance(node, ast.Try):
                # What the body binds holds where it can; the rest stands in for it.
                self._look(node.body)
                for handler in node.handlers:
                    self._look(handler.body)
                self._look(node.orelse)

    def qualified(self, node: ast.expr) -> str:
        """The qualified name of a name or of attributes of one; "" if it is neither, or bound nowhere.

        Example:
            >>> top = TopLevel(ast.parse("from torch import nn").body, "nets", False, ["Net"])
            >>> [top.qualified(ast.parse(text, mode="eval").body) for text in ("nn.Module", "Net", "what", "f()")]
            ['torch.nn.Module', 'nets.Net', '', '']
        """
        rest: list[str] = []
        while isinstance(node, ast.Attribute):
            rest.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        root = self.names.get(node.id) or USUAL.get(node.id, "")
        return shortest(".".join([root, *reversed(rest)])) if root else ""


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The dotted name of the module that a ``from`` import names, from where it stands.

    Example:
        >>> absolute(ast.parse("from ..layers import x").body[0], "pkg.nets.resnet", False)
        'pkg.layers'
    """
    named = node.module or ""
    if not node.level:
        return named
    parts = module.split(".")
    up = node.level - 1 if is_package else node.level
    above = parts[: len(parts) - up] if up <= len(parts) else []
    return ".".join([*above, *([named] if named else [])])

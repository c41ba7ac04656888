"""Which framework a file is written for, as far as its imports tell."""

from __future__ import annotations

import ast

from frostline.lint.file_view import FileView

_OTHERS = frozenset(
    {"tensorflow", "keras", "tf_keras", "tflearn", "paddle", "mxnet", "jax", "flax", "chainer", "mindspore", "oneflow"}
)


def uses_another(view: FileView) -> bool:
    """Whether a file imports a framework that has attributes and methods of other names than torch's."""
    for node in view.nodes(ast.Import, ast.ImportFrom):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        if any(name.partition(".")[0] in _OTHERS for name in names):
            return True
    return False

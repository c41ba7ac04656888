"""Which framework a file is written for."""

from __future__ import annotations

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.frameworks import uses_another
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import source_from_bytes


@pytest.mark.parametrize(
    ("text", "another"),
    [
        ("import torch\n", False),
        ("from torch import nn\n", False),
        ("from .keras_like import fit\n", False),
        ("import tensorflow as tf\n", True),
        ("from tensorflow.keras import layers\n", True),
        ("import torch, paddle.nn\n", True),
        ("def f():\n    import flax\n", True),
    ],
)
def test_imports_tell(text, another):
    source = source_from_bytes(text.encode(), "train.py")
    view = FileView(ModuleWalk(source, parse(source), "train", Project()))
    assert uses_another(view) is another

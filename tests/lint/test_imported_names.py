"""What a file imports, and where an import is added."""

from __future__ import annotations

import ast

import pytest

from frostline.lint.file_view import FileView
from frostline.lint.imported_names import import_added, name_of
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes


def seen(text: str) -> FileView:
    source = source_from_bytes(text.encode(), "a.py")
    assert isinstance(source, Source)
    return FileView(ModuleWalk(source, ast.parse(text), "a", Project()))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import copy\n", "copy.deepcopy"),
        ("import copy as cp\n", "cp.deepcopy"),
        ("from copy import deepcopy\n", "deepcopy"),
        ("from copy import copy, deepcopy as dc\n", "dc"),
        ("from .copy import deepcopy\n", ""),
        ("def f():\n    import copy\n", ""),
        ("import torch\n", ""),
    ],
)
def test_what_it_is_called(text, name):
    assert name_of(seen(text), "copy", "deepcopy") == name


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("import torch\n", "import copy\nimport torch\n"),
        ("# run me\nimport torch\n", "# run me\nimport copy\nimport torch\n"),
        ('"""Doc."""\n', '"""Doc."""\n\nimport copy\n'),
        ('"""Doc."""\nimport torch\n', '"""Doc."""\nimport copy\nimport torch\n'),
        ("from __future__ import annotations\nx = 1\n", "from __future__ import annotations\nimport copy\nx = 1\n"),
        ("@decorated\ndef f():\n    pass\n", "import copy\n@decorated\ndef f():\n    pass\n"),
        ("x = 1\nimport torch\n", "import copy\nx = 1\nimport torch\n"),
    ],
)
def test_where_it_is_added(text, after):
    view = seen(text)
    assert view.source.apply([import_added(view, "copy")]).text == after
    ast.parse(after)

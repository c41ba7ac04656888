"""The room as a whole: its names, and that it starts without what it is about."""

from __future__ import annotations

import subprocess
import sys

import pytest

from frostline import lint

NAMES = [
    "Diagnostic",
    "FixReport",
    "LintReport",
    "Settings",
    "all_rules",
    "fix_paths",
    "lint_paths",
    "lint_source",
    "read_settings",
]


@pytest.mark.parametrize("name", NAMES)
def test_its_names_are_those_of_its_files(name):
    assert getattr(lint, name).__name__ == name
    assert name in dir(lint)


def test_another_name_is_none():
    with pytest.raises(AttributeError, match=r"'frostline\.lint' has no attribute 'lint_path'"):
        _ = lint.lint_path


def test_linting_imports_neither_torch_nor_other_rooms():
    code = (
        "import sys; from frostline import lint; "
        "report = lint.lint_source(b'model.eval\\n', 'train.py', lint.Settings()); "
        "assert len(report.diagnostics) == 1; "
        "rooms = {m.split('.')[1] for m in sys.modules if m.startswith('frostline.')}; "
        "print(sorted(rooms), 'torch' in sys.modules, 'numpy' in sys.modules, 'typer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "['durable', 'errors', 'extras', 'findings', 'lint'] False False False\n"

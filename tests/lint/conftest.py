"""Linting of texts, for the tests of rules."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable

import pytest

from frostline.lint.diagnostic import Diagnostic
from frostline.lint.engine import lint
from frostline.lint.file_view import FileView
from frostline.lint.fixes import apply_fixes
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.parsing import parse
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes

MARK = "# <- "


def source_of(text: str, name: str = "train.py") -> Source:
    source = source_from_bytes(textwrap.dedent(text).encode(), name)
    assert isinstance(source, Source), source
    return source


def project_of(files: dict[str, str]) -> Project:
    """Files that only exist here."""
    sources = {name: source_of(text, name) for name, text in files.items()}

    def opened(name: str) -> ModuleWalk | None:
        tree = parse(sources[name])
        return ModuleWalk(sources[name], tree, name.removesuffix(".py").replace("/", "."), project)

    project = Project(sources, opened, lambda name: sources[name].text)
    return project


def diagnostics(text: str, code: str, files: dict[str, str] | None = None) -> list[Diagnostic]:
    """What one rule finds in a file, which other files may stand beside."""
    project = project_of({**files, "train.py": text}) if files else None
    found, failure = lint(source_of(text), project)
    assert failure is None, failure
    return [each for each in found if each.finding.code == code]


@pytest.fixture
def find() -> Callable[..., list[Diagnostic]]:
    """``find(text, code, files=None)``: what one rule finds."""
    return diagnostics


@pytest.fixture
def check() -> Callable[..., list[Diagnostic]]:
    """``check(text, code, files=None)``: a rule finds the lines that end in ``# <- CODE``, and no other."""

    def checked(text: str, code: str, files: dict[str, str] | None = None) -> list[Diagnostic]:
        lines = textwrap.dedent(text).splitlines()
        wanted = [i for i, line in enumerate(lines, start=1) if line.rstrip().endswith(f"{MARK}{code}")]
        found = diagnostics(text, code, files)
        assert [each.finding.line for each in found] == wanted, [str(each.finding) for each in found]
        return found

    return checked


@pytest.fixture
def fixed() -> Callable[..., str]:
    """``fixed(text, code, unsafe=False)``: the text with the fixes of one rule.

    It parses, and a second run changes nothing.
    """

    def mended(text: str, code: str, *, unsafe: bool = False) -> str:
        source = source_of(text)
        after, _ = apply_fixes(source, diagnostics(source.text, code), unsafe=unsafe)
        compile(after.text, "after", "exec")
        again, applied = apply_fixes(after, diagnostics(after.text, code), unsafe=unsafe)
        assert again.text == after.text, [str(each.finding) for each in applied]
        return after.text

    return mended


@pytest.fixture
def view() -> Callable[..., FileView]:
    """``view(text, files=None)``: a file as the rules see it, which other files may stand beside."""

    def viewed(text: str, files: dict[str, str] | None = None) -> FileView:
        source = source_of(text)
        tree = parse(source)
        assert isinstance(tree, ast.Module), tree
        return FileView(ModuleWalk(source, tree, "train", project_of({**(files or {}), "train.py": text})))

    return viewed

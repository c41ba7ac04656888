"""Lints one file: parses it, looks whether anything in it can concern a rule, and asks the rules that it concerns."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

from frostline.findings import Finding
from frostline.lint.diagnostic import Diagnostic, Failure, Fix
from frostline.lint.file_view import FileView
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.noqa import Silenced
from frostline.lint.parsing import TOO_DEEP, parse
from frostline.lint.project import Project
from frostline.lint.rule import LintRule, Violation
from frostline.lint.rules import all_rules
from frostline.lint.source import Source


def lint(source: Source, project: Project | None = None) -> tuple[list[Diagnostic], Failure | None]:
    """All that the rules find in a file, in the order of the text; comments that silence them are honoured.

    Args:
        source: the file.
        project: the files that it is linted with.

    Returns:
        What was found, and why nothing could be found where the file is no Python.
    """
    project = project or Project()
    # Another file may have looked into this one before.
    walk = project.kept(source.path)
    if walk is None:
        tree = parse(source)
        if isinstance(tree, Failure):
            return [], tree
    else:
        tree = walk.tree
    rules = [rule for rule in all_rules().values() if any(trigger in source.text for trigger in rule.triggers)]
    if not rules:
        return [], None
    try:
        if walk is None:
            walk = ModuleWalk(source, tree, module_name(source.path), project)
            project.add(walk)
        return _checked(walk, rules), None
    except RecursionError:
        # What stands half walked through is of no use to others.
        project.forget()
        return [], Failure(source.path, TOO_DEEP)


def _checked(walk: ModuleWalk, rules: list[LintRule]) -> list[Diagnostic]:
    source = walk.source
    view = FileView(walk)
    silenced = Silenced.of(source)
    found: dict[tuple[str, int, int], Diagnostic] = {}
    for rule in rules:
        for violation in rule.check(view):
            diagnostic = _diagnostic(rule, violation, view)
            finding = diagnostic.finding
            # The same place is met in several flows; what is said of it first is kept.
            key = (rule.code, getattr(violation.node, "lineno", 0), getattr(violation.node, "col_offset", 0))
            if key not in found and not _is_silenced(silenced, finding.code, violation.node):
                found[key] = diagnostic
    ordered = sorted(found.items(), key=lambda item: (item[0][1], item[0][2], item[0][0]))
    return [diagnostic for _, diagnostic in ordered]


def open_walk(source: Source, project: Project) -> ModuleWalk | None:
    """What is in a file that another one imports from."""
    tree = parse(source)
    if isinstance(tree, Failure):
        return None
    try:
        return ModuleWalk(source, tree, module_name(source.path), project)
    except RecursionError:
        return None


def _diagnostic(rule: LintRule, violation: Violation, view: FileView) -> Diagnostic:
    source = view.source
    node = violation.node
    start, end = source.start(node), source.end(node)
    line, column = source.position(start)
    end_line, end_column = source.position(end)
    cell, line_in_cell = source.cell_of(line)
    _, end_in_cell = source.cell_of(end_line)
    fix = None
    if violation.edits:
        edits = tuple(sorted(violation.edits, key=lambda edit: (edit.start, edit.end)))
        fix = Fix(edits, violation.safety, violation.title or violation.remedy.splitlines()[0])
    finding = Finding(
        code=rule.code,
        severity=violation.severity,
        message=violation.message,
        where=view.function(node),
        evidence="\n".join(violation.evidence),
        remedy=violation.remedy,
        safety=violation.safety,
        file=source.path,
        line=line_in_cell,
        column=column,
        source=view.line(line),
        inferred=violation.inferred,
    )
    return Diagnostic(finding, end_in_cell, end_column, fix, cell)


def _is_silenced(silenced: Silenced, code: str, node: ast.AST) -> bool:
    first = getattr(node, "lineno", 0)
    last = getattr(node, "end_lineno", first)
    if isinstance(node, (ast.For, ast.While, ast.If, ast.With, ast.FunctionDef, ast.ClassDef)):
        last = first
    return silenced.covers(code, first, last)


def module_name(path: str) -> str:
    """The dotted name by which other files import a file, from the outermost folder with an ``__init__.py`` on.

    Example:
        >>> module_name("nowhere/train.py")
        'train'
    """
    file = Path(path)
    parts = [] if file.stem == "__init__" else [file.stem]
    folder = file.parent
    while folder.name and _is_package(folder):
        parts.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(parts)) or file.parent.name or file.stem


@lru_cache(maxsize=4096)
def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()


def forget_packages() -> None:
    """Look again at which folders are packages: files may have come and gone."""
    _is_package.cache_clear()

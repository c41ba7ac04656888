"""Findings by hand for the tests of how they are shown: one that is fixed safely, one unsafely, one not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from frostline.findings import Finding, Safety, Severity
from frostline.lint.diagnostic import Diagnostic, Edit, Failure, Fix, LintReport

TRAIN = """\
for p in net.parameters():
    p.require_grad = False
layers = [
    nn.Linear(3, 4),
]
net.eval()
"""

MISSPELT = Diagnostic(
    Finding(
        "F101",
        Severity.ERROR,
        "`p.require_grad` is no attribute of a parameter",
        "",
        evidence="p comes from net.parameters()",
        remedy="p.requires_grad = False",
        safety=Safety.SAFE,
        file="train.py",
        line=2,
        column=5,
        source="p.require_grad = False",
    ),
    end_line=2,
    end_column=19,
    fix=Fix((Edit(33, 45, "requires_grad"),), Safety.SAFE, "Rename to requires_grad"),
)
LISTED = Diagnostic(
    Finding(
        "H601",
        Severity.WARNING,
        "layers are kept in a list",
        "",
        remedy="layers = nn.ModuleList([...])",
        safety=Safety.UNSAFE,
        file="train.py",
        line=3,
        column=10,
        source="layers = [",
    ),
    end_line=5,
    end_column=2,
    fix=Fix((Edit(63, 63, "nn.ModuleList("), Edit(87, 87, ")")), Safety.UNSAFE, "Wrap into a ModuleList"),
)
EVAL = Diagnostic(
    Finding(
        "F106",
        Severity.INFO,
        "eval() freezes nothing",
        "",
        remedy="also:\n    net.requires_grad_(False)",
        file="train.py",
        line=6,
        column=1,
        source="net.eval()",
    ),
    end_line=6,
    end_column=11,
)
BROKEN = Failure("broken.py", "invalid syntax", 3, 7)
REPORT = LintReport((MISSPELT, LISTED, EVAL), (BROKEN,), files=4, lines=20)


def in_cell(diagnostic: Diagnostic, file: str, cell: int) -> Diagnostic:
    """The same finding in a notebook."""
    return replace(diagnostic, finding=replace(diagnostic.finding, file=file), cell=cell)


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook with these cells of code."""
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": cell}
                    for cell in cells
                ],
                "metadata": {},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )

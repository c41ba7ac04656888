"""Progress in a notebook. IPython is no dependency: its two calls, ``display`` and ``update``, are stood in for."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import MissingExtra
from frostline.finetune import FinetuneConfig, run
from frostline.report import NotebookProgress, notebook


@pytest.fixture
def drawn(monkeypatch):
    """What a notebook would show, one entry for each drawing; the output is made once, and written anew."""
    found: list[str] = []
    made: list[object] = []

    def display(item, *, display_id):
        assert display_id is True
        made.append(item)
        found.append(item._repr_html_())
        return SimpleNamespace(update=lambda again: found.append(again._repr_html_()))

    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    package.display, package.version_info, package.get_ipython = module, (8, 0, 0), lambda: None
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    yield found
    assert len(made) == 1


def test_a_run_is_shown_and_ends_as_it_does_without(drawn, tmp_path):
    config = FinetuneConfig(epochs=1, naive=False)
    shown = run(config, tmp_path / "shown", progress=NotebookProgress())
    silent = run(config, tmp_path / "silent")
    assert [row.loss for row in shown.rows] == [row.loss for row in silent.rows]
    assert any("<progress value=" in each for each in drawn)
    assert "epoch 1/1: loss" in drawn[-1]
    assert "training parity: 1 epoch" in drawn[-1]


def test_statistics_are_estimated_under_it(drawn):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fl.recalibrate(model, [torch.rand(4, 3, 8, 8) for _ in range(3)], progress=NotebookProgress())
    assert "<progress aria-label=" in drawn[0]
    assert "batch 1" in drawn[0]


def test_so_many_of_so_many_are_drawn_at_the_end_whatever_the_time(drawn, monkeypatch):
    monkeypatch.setattr(notebook, "EVERY", 1e9)
    progress = NotebookProgress()
    for done in range(1, 5):
        progress(done, 4)
    assert ['value="4" max="4"' in each for each in drawn] == [True]


def test_a_few_shot_run_is_told(drawn):
    progress = NotebookProgress()
    progress.begin(20, 5)
    progress.iteration(SimpleNamespace(iteration=20, accuracy=0.5))
    progress.validated(SimpleNamespace(iteration=20, accuracy=None))
    assert 'value="20" max="20"' in drawn[-1]
    assert "validation after 20: no task was finished" in drawn[-1]
    assert repr(progress) == "validation after 20: no task was finished\niteration 20 of 20: accuracy 50.0% 20 of 20"


def test_names_are_escaped_and_old_lines_counted(drawn):
    progress = NotebookProgress()
    for number in range(15):
        progress.say(f"<script>{number}")
    progress.features(1, 2)
    assert "<script>" not in drawn[-1]
    assert "... (3 earlier lines)" in drawn[-1]
    assert "&lt;script&gt;14" in drawn[-1]


def test_without_ipython_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(MissingExtra, match="IPython"):
        NotebookProgress()

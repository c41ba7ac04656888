"""F118: reentrant checkpointing behind a frozen part."""

from __future__ import annotations

import warnings

import pytest
import torch
from planted_loops import f118, marked_line
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F118 error: reentrant checkpointing cuts off 4 trainable parameters: they get no gradient
  seen: block: requires_grad is True, and .grad was None in each of 4 steps
        checkpoint(use_reentrant=True) records a gradient only where an input requires one
        the part before it is frozen: embed
  at:   benchmarks/planted_loops/f118.py:{line}  x = checkpoint(self.block, x, use_reentrant=True)  # <- F118
  fix:  checkpoint(..., use_reentrant=False)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f118.failing())
    assert [f.code for f in found] == ["F118"]
    line = marked_line(f118.Net.forward, "F118")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {f"block.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f118.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 frozen parameter kept its bytes" in found.sound


class Whole(nn.Module):
    """All that trains is inside: backward() has nothing to start from."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.block = nn.Linear(8, 3)

    def forward(self, ids):
        return checkpoint(self.block, self.embed(ids), use_reentrant=True)


def test_where_backward_fails_the_cause_is_named():
    watcher = fl.watch()
    with pytest.raises(RuntimeError, match="does not require grad"), watcher as seen:
        f118.train(Whole(), 2)
    found = examine(seen)
    assert found[0].code == "F118"
    assert "RuntimeError: element 0 of tensors does not require grad" in found[0].evidence


def test_reentrant_checkpointing_behind_a_trainable_part_is_sound():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fl.watch() as seen:
            model = f118.Net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randint(10, (8,))), torch.randint(3, (8,))).backward()
                optimizer.step()
    found = examine(seen)
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters inside of checkpointing got gradients" in found.sound

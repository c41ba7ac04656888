"""What the page of a run with several tasks says."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from frostline.fast.head_task import HeadTask
from frostline.fast.heads import train_heads
from frostline.finetune.label_file import TaskData
from frostline.finetune.metrics import EpochRow
from frostline.finetune.tasks_page import MOST_DRAWN, tasks_page
from frostline.report import RunPage, render_run
from frostline.state.held_rows import held_rows
from frostline.state.snapshot import snapshot

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
CLASSES = [0, 1] * 4
DATA = TaskData(("ant", "bee"), ((Path("a.png"), 0), (Path("b.png"), 1)), ((Path("c.png"), 0), (Path("d.png"), 1)))


def page_of(count: int, *, moves: bool = False, lr: float = 0.01) -> RunPage:
    trunk = nn.BatchNorm1d(4).eval()
    before = snapshot(trunk)
    heads = {f"task{index}": nn.Linear(4, 2) for index in range(count)}
    wanted = {
        name: HeadTask(CLASSES, CLASSES, head=head, lr=lr if name == "task0" else 0.01, epochs=2)
        for name, head in heads.items()
    }
    if moves:
        trunk.running_mean.add_(1.0)
    trained = train_heads(X, wanted, val=X, trunk=trunk)
    rows = held_rows(before, trunk)
    held = {f"trunk.{path}": row for path, row in rows.items()}
    return tasks_page(
        title="a test",
        facts=(("seed", "0"),),
        warnings=("one",),
        tasks=dict.fromkeys(heads, DATA),
        heads=heads,
        trained=trained,
        before=before,
        certificate={"held": held, "moved": [path for path, row in held.items() if not row["equal"]]},
        rows=[EpochRow(e.head, e.epoch, e.epochs, e.loss, e.accuracy or 0.0, e.seconds) for e in trained.epochs],
    )


def test_a_page_has_every_head_with_its_curves_and_what_it_moved():
    page = page_of(2)
    assert page.verdict
    assert dict(page.facts)["tasks"] == "task0 (ant, bee), task1 (ant, bee)"
    assert dict(page.facts)["head task1"].startswith("2 images to train, 2 to validate, 2 classes; the largest class")
    assert [(curve.name, curve.phase) for curve in page.curves] == [
        (name, phase) for phase in ("task0", "task1") for name in ("loss", "accuracy")
    ]
    assert [entry.path for entry in page.trained] == [
        f"heads.{name}.{tensor}" for name in ("task0", "task1") for tensor in ("weight", "bias")
    ]
    assert {entry.path for entry in page.held} >= {"trunk.running_mean", "trunk.training"}
    assert [head.name for head in page.outcome.heads] == ["task0", "task1"]
    assert "Nothing that was held moved" in render_run(page)


def test_what_moved_decides():
    page = page_of(1, moves=True)
    assert [entry.path for entry in page.held if not entry.equal] == ["trunk.running_mean"]
    assert "1 of 12 held entries moved" in render_run(page)


def test_a_head_that_diverged_is_a_warning():
    page = page_of(2, lr=1e38)
    assert page.warnings[0] == "one"
    assert page.warnings[1].startswith("the head 'task0' diverged: the ")
    assert "diverged" in dict(page.facts)["head task0"]


def test_of_many_heads_the_first_are_drawn_and_the_others_named():
    page = page_of(MOST_DRAWN + 2)
    assert len({curve.phase for curve in page.curves}) == MOST_DRAWN
    assert dict(page.facts)["further heads"] == "task12, task13"
    assert page.warnings[-1].startswith("the curves are those of the first 12 heads")
    assert len(page.outcome.heads) == MOST_DRAWN + 2

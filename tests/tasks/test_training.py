"""One task at a time: trunk and other heads stay to the bit, where the loop that users write moves them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import FreezeError, FrozenStateMoved, HoldReleased, NothingSelected
from frostline.tasks import TaskModel, fit_task, logits_of, train_task

Batches = list[tuple[Tensor, Tensor]]
State = Callable[[nn.Module], dict[str, object]]


def step_through(model: TaskModel, batches: Batches, optimizer: torch.optim.Optimizer) -> None:
    """The loop of every tutorial; it knows of no hold."""
    for _ in range(3):
        model.train()
        for inputs, labels in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs, "new"), labels).backward()
            optimizer.step()


def others(state: dict[str, object]) -> dict[str, object]:
    return {path: value for path, value in state.items() if not path.startswith("heads.new") and path != ".training"}


# The proof, and its failing twin


def test_the_naive_way_changes_the_other_heads_logits(two_heads: TaskModel, batches: Batches):
    probe = [inputs for inputs, _ in batches]
    before = logits_of(two_heads, probe)["old"]
    two_heads.trunk.requires_grad_(False)
    two_heads.heads["old"].requires_grad_(False)
    step_through(two_heads, batches, torch.optim.AdamW(two_heads.parameters(), lr=0.1))
    assert not torch.equal(logits_of(two_heads, probe)["old"], before)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_train_task_holds_the_rest_to_the_bit_and_the_head_learns(
    two_heads: TaskModel, batches: Batches, state_of: State, kind: type[torch.optim.Optimizer]
):
    probe = [inputs for inputs, _ in batches]
    before, logits = state_of(two_heads), logits_of(two_heads, probe)
    optimizer = kind(two_heads.parameters(), lr=0.1, weight_decay=0.1)
    with train_task(two_heads, "new", optimizer=optimizer, probe=probe) as training:
        # Every entry of the trunk and of the other head: tensors, requires_grad, modes, and the figures of its layers.
        assert {path for path in before if path.startswith(("trunk", "heads.old"))} <= set(training.hold.paths)
        step_through(two_heads, batches, optimizer)
        assert training.report.isolated
    after = state_of(two_heads)
    assert others(after) == others(before)
    assert after["heads.new.weight"] != before["heads.new.weight"]
    assert logits_of(two_heads, probe)["old"].numpy().tobytes() == logits["old"].numpy().tobytes()
    report = training.report
    assert (report.task, report.isolated, report.whole_trunk, bool(report.diff)) == ("new", True, True, False)
    assert [(head.name, head.logits_equal) for head in report.heads] == [("old", True), ("new", False)]


def test_momentum_that_was_there_before_does_not_go_on_moving(two_heads: TaskModel, batches: Batches, state_of: State):
    optimizer = torch.optim.SGD(two_heads.parameters(), lr=0.1, momentum=0.9)
    inputs, _ = batches[0]
    two_heads(inputs, "old").square().sum().backward()
    optimizer.step()
    two_heads(inputs, "old").sum().backward()  # stale gradients stand by
    before = state_of(two_heads)
    with train_task(two_heads, "new", optimizer=optimizer):
        optimizer.step()
    assert others(state_of(two_heads)) == others(before)


def test_a_held_tensor_that_is_written_all_the_same_is_named(two_heads: TaskModel):
    with (
        pytest.raises(FrozenStateMoved, match=r"trunk\.0\.bias") as caught,
        train_task(two_heads, "new", probe=torch.randn(4, 6)) as training,
    ):
        two_heads.trunk[0].bias.data[0] += 1
    assert caught.value.diff.paths == ["trunk.0.bias"]
    assert (training.report.isolated, training.report.diff.paths) == (False, ["trunk.0.bias"])
    assert all(parameter.requires_grad for parameter in two_heads.parameters())  # released all the same


def test_a_trunk_that_writes_itself_in_forward_is_not_moved_by_the_probe(state_of: State):
    """An embedding with ``max_norm`` shrinks the rows it looks up, in eval mode too."""
    model = TaskModel(
        nn.Sequential(nn.Embedding(4, 3, max_norm=0.1), nn.Flatten()), {"old": nn.Linear(6, 2), "new": nn.Linear(6, 2)}
    )
    before = state_of(model)
    with train_task(model, "new", probe=[torch.tensor([[0, 1]]), torch.tensor([[1, 2]])]) as training:
        model(torch.tensor([[0, 3]]), "new").sum().backward()
    assert state_of(model) == before
    assert training.report.isolated


# What is held


def test_part_of_the_trunk(two_heads: TaskModel, batches: Batches, state_of: State):
    optimizer = torch.optim.AdamW(two_heads.parameters(), lr=0.1)
    before = state_of(two_heads)
    with train_task(two_heads, "new", optimizer=optimizer, trunk=("0", "1"), probe=batches[0][0]) as training:
        step_through(two_heads, batches, optimizer)
    after = state_of(two_heads)
    moved = {path for path in before if after[path] != before[path]}
    assert moved == {"trunk.4.weight", "trunk.4.bias", "heads.new.weight", "heads.new.bias"}
    report = training.report
    assert (report.isolated, report.whole_trunk, report.heads[0].logits_equal) == (True, False, False)


def test_nothing_of_the_trunk_still_holds_the_other_heads(two_heads: TaskModel, batches: Batches, state_of: State):
    optimizer = torch.optim.AdamW(two_heads.parameters(), lr=0.1)
    before = state_of(two_heads)
    with train_task(two_heads, "new", optimizer=optimizer, trunk=()):
        step_through(two_heads, batches, optimizer)
    after = state_of(two_heads)
    assert after["trunk.1.running_mean"] != before["trunk.1.running_mean"]
    assert {p: v for p, v in after.items() if "old" in p} == {p: v for p, v in before.items() if "old" in p}


def test_nothing_at_all_to_hold_is_refused_rather_than_all_held():
    model = TaskModel(nn.Linear(2, 2), {"only": nn.Linear(2, 2)})
    with pytest.raises(FreezeError, match="nothing would be held"), train_task(model, "only", trunk=()):
        pass
    with train_task(model, "only"):
        assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_selectors_are_of_the_trunk_and_named_when_they_match_nothing(two_heads: TaskModel, state_of: State):
    before = state_of(two_heads)
    with pytest.raises(NothingSelected, match=r"'heads\.old' matched nothing in Sequential"):
        train_task(two_heads, "new", trunk=("heads.old",)).__enter__()
    with pytest.raises(ValueError, match="no such head"):
        train_task(two_heads, "neither").__enter__()
    assert state_of(two_heads) == before


# How it ends


def test_what_was_there_before_comes_back(two_heads: TaskModel, state_of: State):
    two_heads.trunk[3].eval()
    two_heads.trunk[0].bias.requires_grad_(False)
    before = state_of(two_heads)
    with train_task(two_heads, "new"):
        assert not two_heads.trunk[1].train().training
        assert state_of(two_heads) != before
    assert state_of(two_heads) == before
    assert two_heads.trunk[1].train().training


def test_an_exception_releases_the_hold_and_is_the_one_that_is_seen(two_heads: TaskModel, state_of: State):
    before = state_of(two_heads)
    with pytest.raises(KeyError, match="mine"), train_task(two_heads, "new", probe=torch.randn(2, 6)) as training:
        raise KeyError("mine")
    assert state_of(two_heads) == before
    assert two_heads.trunk[1].train().training
    with pytest.raises(HoldReleased):
        _ = training.report


def test_a_probe_that_does_not_fit_releases_the_hold(two_heads: TaskModel, state_of: State):
    before = state_of(two_heads)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train_task(two_heads, "new", probe=torch.zeros(2, 7)).__enter__()
    assert state_of(two_heads) == before


def test_without_a_probe_there_is_no_report(two_heads: TaskModel):
    with train_task(two_heads, "new") as training, pytest.raises(FreezeError, match="without a probe batch"):
        _ = training.report


def test_tasks_can_be_trained_one_after_the_other(two_heads: TaskModel, batches: Batches):
    optimizer = torch.optim.AdamW(two_heads.parameters(), lr=0.05)
    for task in ("new", "old", "new"):
        report = fit_task(two_heads, task, batches, optimizer=optimizer, probe=batches[0][0])
        assert report is not None
        assert report.isolated
        assert {head.name: head.logits_equal for head in report.heads} == {"old": task != "old", "new": task != "new"}


# The plain loop


def test_fit_task_learns_and_reports(two_heads: TaskModel, batches: Batches):
    learnable = [(inputs, (inputs[:, 0] > 2).long()) for inputs, _ in batches]
    labels = {"new": learnable[0][1]}
    report = fit_task(
        two_heads,
        "new",
        learnable,
        optimizer=torch.optim.AdamW(two_heads.parameters(), lr=0.05),
        epochs=30,
        probe=learnable[0][0],
        labels=labels,
    )
    assert report is not None
    assert report.isolated
    new = report.heads[1]
    assert new.metric_before is not None
    assert new.metric_after is not None
    assert new.metric_after > new.metric_before
    assert two_heads.training


def test_fit_task_takes_another_loss_and_needs_no_probe(two_heads: TaskModel, batches: Batches):
    seen: list[float] = []

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        value = torch.nn.functional.multi_margin_loss(logits, classes)
        seen.append(value.item())
        return value

    optimizer = torch.optim.SGD(two_heads.heads["new"].parameters(), lr=0.1)
    assert fit_task(two_heads, "new", batches, optimizer=optimizer, epochs=2, loss=loss) is None
    assert len(seen) == 2 * len(batches)

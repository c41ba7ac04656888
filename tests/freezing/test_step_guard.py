"""The step guard: no optimizer moves what is held."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FreezeError
from frostline.freezing.step_guard import StepGuard, as_optimizers


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.fixture
def x():
    return torch.randn(16, 3)


def closure_for(model, optimizer, x, calls=None):
    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        if calls is not None:
            calls.append(model[0].weight.detach().clone())
        return loss

    return closure


CLOSURES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=5),
    "LBFGS line search": lambda p: torch.optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe"),
}


class TestClosures:
    @pytest.mark.parametrize("name", CLOSURES)
    @pytest.mark.parametrize("keyword", [True, False], ids=["keyword", "positional"])
    def test_requires_grad_turned_on_again(self, model, x, name, keyword, twin, bytes_of, moved):
        optimizer = CLOSURES[name](model.parameters())
        twin.freeze(model, "0", **({"optimizer": optimizer} if twin.name == "ours" else {}))
        before = bytes_of(model)
        model.requires_grad_(True)
        closure = closure_for(model, optimizer, x)
        for _ in range(2):
            loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            assert loss is not None
        with twin.verdict():
            assert moved(before, bytes_of(model)) == {"2.weight", "2.bias"}

    @pytest.mark.parametrize("name", ["LBFGS", "LBFGS line search"])
    def test_lbfgs_remembers_directions_from_before_the_hold(self, model, x, name, twin, bytes_of, moved):
        model[0].weight.data[0, 0] = -0.0  # x + 0 would flip its sign bit
        optimizer = CLOSURES[name](model.parameters())
        optimizer.step(closure_for(model, optimizer, x))
        model[0].weight.data[0, 0] = -0.0
        twin.freeze(model, "0", **({"optimizer": optimizer} if twin.name == "ours" else {}))
        before = bytes_of(model)
        seen = []
        losses = [optimizer.step(closure_for(model, optimizer, x, seen)).item() for _ in range(3)]
        with twin.verdict():
            assert moved(before, bytes_of(model)) == {"2.weight", "2.bias"}
        if twin.hold:
            assert all(torch.equal(weight, model[0].weight) for weight in seen)  # also while it searches
            assert losses[-1] < losses[0]
            twin.hold.verify()

    def test_a_closure_that_raises_leaves_what_is_held(self, model, x, bytes_of):
        optimizer = CLOSURES["LBFGS"](model.parameters())
        optimizer.step(closure_for(model, optimizer, x))
        hold = fl.freeze(model, "0", optimizer=optimizer)
        closure, calls = closure_for(model, optimizer, x), []

        def broken():
            calls.append(1)
            if len(calls) == 2:
                raise KeyError("own")
            return closure()

        with pytest.raises(KeyError, match="own"):
            optimizer.step(broken)
        hold.verify()


def test_several_optimizers(model, x, train, bytes_of, moved):
    optimizers = [torch.optim.AdamW([p], lr=0.1) for p in model.parameters()]
    train(model, x)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    hold = fl.freeze(model, "0", optimizer=optimizers)
    before = bytes_of(model)
    model.requires_grad_(True)
    model(x).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert moved(before, bytes_of(model)) == {"2.weight", "2.bias"}
    hold.thaw()
    assert all(not optimizer._optimizer_step_pre_hooks for optimizer in optimizers)


def test_grad_scaler(model, x, bytes_of, moved):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")

    def step():
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    step()
    optimizer.zero_grad(set_to_none=False)
    hold = fl.freeze(model, "0", optimizer=optimizer)
    before = bytes_of(model)
    model.requires_grad_(True)
    for _ in range(2):
        step()
    assert moved(before, bytes_of(model)) == {"2.weight", "2.bias"}
    assert {row.kind for row in hold.diff().moved} == {"requires_grad"}


def test_accelerates_optimizer_is_looked_through(model, x, twin, bytes_of, moved, request):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    accelerator.backward(prepared(x).square().mean())
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    twin.freeze(prepared, "0", **({"optimizer": optimizer} if twin.name == "ours" else {}))
    before = bytes_of(model)
    accelerator.backward(prepared(x).square().mean())
    optimizer.step()
    with twin.verdict():
        assert moved(before, bytes_of(model)) == {"2.weight", "2.bias"}
    if twin.hold:
        twin.hold.verify()


class TestGuard:
    def test_thaw_takes_the_hook_out(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "0", optimizer=optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
        hold.thaw("0.bias")
        assert len(optimizer._optimizer_step_pre_hooks) == 1
        hold.thaw()
        assert len(optimizer._optimizer_step_pre_hooks) == 0

    def test_lbfgs_hooks_go_too(self, model):
        optimizer = torch.optim.LBFGS(model.parameters())
        fl.freeze(model, "0", optimizer=optimizer).thaw()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks

    def test_thawed_parameters_train_again(self, model, x, train):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        hold = fl.freeze(model, "0", optimizer=optimizer)
        train(model, x, optimizer)
        hold.thaw()
        weight = model[0].weight.clone()
        train(model, x, optimizer)
        assert not torch.equal(model[0].weight, weight)

    def test_nested_holds_with_one_optimizer(self, model, x, train):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        a, b = fl.freeze(model, "0", optimizer=optimizer), fl.freeze(model, "*", optimizer=optimizer)
        a.thaw()
        model.requires_grad_(True)
        train(model, x, optimizer)
        assert {row.kind for row in b.diff().moved} == {"requires_grad"}

    def test_what_the_ledger_does_not_hold_is_left_alone(self, model):
        guard = StepGuard([(model[0], "weight")], [])
        model[0].weight.grad = torch.ones(4, 3)
        guard(torch.optim.SGD(model.parameters(), lr=0.1), (None,), {})
        assert model[0].weight.grad is not None

    def test_a_parameter_that_was_made_anew_is_found_under_its_name(self, model, bytes_of):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fl.freeze(model, "0", optimizer=optimizer)
        model[0].weight = nn.Parameter(torch.ones(4, 3))  # requires_grad is True again
        optimizer.param_groups[0]["params"].append(model[0].weight)
        model[0].weight.grad = torch.ones(4, 3)
        optimizer.step()
        assert torch.equal(model[0].weight, torch.ones(4, 3))

    def test_the_optimizer_does_not_keep_the_model_alive(self):
        model = nn.Linear(2, 2)
        other = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([other], lr=0.1)
        fl.freeze(model, "", optimizer=optimizer)
        watched = weakref.ref(model)
        gc.disable()
        try:
            del model
            assert watched() is None
        finally:
            gc.enable()
        other.grad = torch.ones(1)
        optimizer.step()
        assert other.item() == pytest.approx(0.9)

    def test_checkpoints_and_copies_of_the_optimizer_are_plain(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plain = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
        fl.freeze(model, "0", optimizer=optimizer)
        assert optimizer.state_dict() == plain
        copy.deepcopy(optimizer).step()

    def test_schedulers_do_not_mind(self, model, x, train):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        fl.freeze(model, "0", optimizer=optimizer)
        train(model, x, optimizer)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.05


class TestAsOptimizers:
    def test_none_one_several(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert as_optimizers(None) == []
        assert as_optimizers(optimizer) == [optimizer]
        assert as_optimizers([optimizer, optimizer]) == [optimizer, optimizer]
        assert as_optimizers((optimizer,)) == [optimizer]

    @pytest.mark.parametrize("wrong", ["adam", torch.optim.SGD, {"lr": 1}, [None]])
    def test_anything_else(self, wrong):
        with pytest.raises(FreezeError) as caught:
            as_optimizers(wrong)
        kind = type(wrong[0] if isinstance(wrong, list) else wrong).__name__
        assert str(caught.value) == (
            f"freeze(optimizer=...): expected a torch.optim.Optimizer, got {kind}.\n"
            "  fix: pass the torch optimizer itself, or a list of them"
        )

    def test_a_generator_of_optimizers(self, model):
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
        assert as_optimizers(each for each in optimizers) == optimizers

    def test_a_wrong_optimizer_leaves_the_model(self, model):
        with pytest.raises(FreezeError):
            fl.freeze(model, "0", optimizer="adam")
        assert model[0].weight.requires_grad

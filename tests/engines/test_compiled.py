"""Holds and schedules on compiled models: ``torch.compile`` and ``module.compile``, before and after, whole graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.optim import Stage, Step, Unfreeze, Unfreezing

pytestmark = [
    pytest.mark.slow,
    # Of torch's own modules, which the compiler imports.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

# After which step what is done to the stem.
PLAN = {1: "freeze", 3: "thaw", 4: "freeze"}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def compiled_as(how, net, backend):
    """What is called and frozen: a wrapper, or the net itself."""
    if how == "torch.compile":
        return torch.compile(net, backend=backend, fullgraph=True)
    if how == "module.compile":
        net.compile(backend=backend, fullgraph=True)
    return net


def one_step(model, optimizer, x, number):
    model.train()
    torch.manual_seed(number)
    out = model(x)
    optimizer.zero_grad()
    out.square().mean().backward()
    optimizer.step()
    return out.detach()


def trained(net, how, backend, batches, plan):
    """Outputs of all steps, and the state after each; a hold that is on is verified after each step."""
    model = compiled_as(how, net, backend)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    outs, states, hold = [], [], None
    for number, x in enumerate(batches):
        if plan.get(number) == "freeze":
            hold = fl.freeze(model, "stem", optimizer=optimizer)
        elif plan.get(number) == "thaw":
            hold.thaw()
        outs.append(one_step(model, optimizer, x, number))
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        if hold is not None and not hold.released:
            hold.verify()
    return outs, states


def assert_same(run, other):
    for mine, theirs in zip(run[0], other[0], strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(run[1], other[1], strict=True):
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def breaks_and_graphs():
    counters = torch._dynamo.utils.counters
    return dict(counters["graph_break"]), counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
class TestWholeGraphs:
    def test_freeze_thaw_and_freeze_again_after_compile(self, make_net, batches, how, backend):
        plain = trained(make_net(), "not", backend, batches, PLAN)
        assert_same(trained(make_net(), how, backend, batches, PLAN), plain)
        # One graph for each of the two states of the stem; the second time each is found again.
        assert breaks_and_graphs() == ({}, 2)

    def test_freeze_before_compile_and_thaw_after(self, make_net, batches, how, backend):
        plan = {0: "freeze", 3: "thaw"}
        plain = trained(make_net(), "not", backend, batches, plan)
        stem = {name: value for name, value in make_net().state_dict().items() if name.startswith("stem")}
        run = trained(make_net(), how, backend, batches, plan)
        assert_same(run, plain)
        assert all(torch.equal(run[1][2][name], value) for name, value in stem.items())
        after = {name for name, value in stem.items() if not torch.equal(run[1][-1][name], value)}
        assert after == stem.keys(), "all train after the thaw"
        assert breaks_and_graphs() == ({}, 2)

    def test_unfreezing_in_the_middle_of_training(self, make_net, batches, how, backend):
        def run(how):
            net = make_net()
            model = compiled_as(how, net, backend)
            optimizer = torch.optim.AdamW(fl.param_groups(net, lr=0.01, layer_decay=1.0, head="head"))
            schedule = Unfreeze((Stage(("body",), Step(2), warmup=2), Stage(("stem",), Step(5))))
            unfreezing = Unfreezing(schedule, model, optimizer)
            outs, states = [], []
            for number, x in enumerate(batches):
                outs.append(one_step(model, optimizer, x, number))
                states.append({name: value.clone() for name, value in net.state_dict().items()})
                if unfreezing.held:
                    unfreezing.hold.verify()
            assert unfreezing.held == []
            return outs, states

        plain, start = run("not"), make_net().state_dict()
        compiled = run(how)
        assert_same(compiled, plain)
        for part, steps in (("stem", 5), ("body", 2)):
            names = [name for name in start if name.startswith(part)]
            assert all(torch.equal(compiled[1][steps - 1][name], start[name]) for name in names)
            assert not any(torch.equal(compiled[1][steps][name], start[name]) for name in names)
        assert breaks_and_graphs() == ({}, 3)


def test_the_naive_way_moves_in_a_compiled_model_too(make_net, batches, bytes_of, moved):
    net = make_net()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    compiled(batches[0])
    net.stem.requires_grad_(False)
    net.stem.eval()
    before = bytes_of(net.stem)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    one_step(compiled, optimizer, batches[1], 0)
    assert moved(before, bytes_of(net.stem)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_by_inductor(make_net, batches):
    """Its sums are in another order: held entries are equal to the bit all the same, the outputs up to rounding."""
    plain = trained(make_net(0.0), "not", "inductor", batches[:5], PLAN)
    run = trained(make_net(0.0), "torch.compile", "inductor", batches[:5], PLAN)
    # Values of order 1 and sums of 16 terms, five steps of a rate of 0.1: a hundred roundings at most.
    for mine, theirs in zip(run[0], plain[0], strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=100 * torch.finfo(torch.float32).eps * 10)
    stem = [name for name in run[1][0] if name.startswith("stem")]
    assert all(torch.equal(run[1][0][name], run[1][2][name]) for name in stem), "held from step 1 to 3"
    assert not any(torch.equal(run[1][2][name], run[1][3][name]) for name in stem), "trains from step 3 to 4"
    assert all(torch.equal(run[1][3][name], run[1][4][name]) for name in stem), "held again"
    assert breaks_and_graphs() == ({}, 2)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("order", ["freeze first", "compile first"])
def test_a_layer_whose_forward_is_replaced_breaks_no_graph(order, backend):
    """A held embedding with ``max_norm`` writes to copies of its tensors."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4, max_norm=0.5), nn.Linear(4, 2)

        def forward(self, words):
            return self.head(self.embed(words).mean(1))

    torch.manual_seed(0)
    net, words = Words(), torch.randint(10, (4, 3))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    weight, before = net.embed.weight, net.embed.weight.detach().clone()
    if order == "compile first":
        compiled(words)
        assert not torch.equal(net.embed.weight, before), "without a hold it rescales its rows"
    hold = fl.freeze(net, "embed")
    held = net.embed.weight.detach().clone()
    out = compiled(words)
    out.sum().backward()
    assert torch.equal(out, net(words))
    assert net.embed.weight is weight
    assert torch.equal(net.embed.weight, held)
    hold.verify()
    assert breaks_and_graphs()[0] == {}


@pytest.mark.parametrize("order", ["freeze first", "compile first"])
def test_a_compiled_step_is_guarded_and_counted(make_net, batches, order):
    """Hooks run in a compiled step too, and are not traced: a count would be traced anew at each step."""
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step = torch.compile(optimizer.step, backend="eager")

    def backward(x):
        net.train()
        optimizer.zero_grad()
        net(x).square().mean().backward()

    backward(batches[0])
    (step if order == "compile first" else optimizer.step)()
    unfreezing = Unfreezing(Unfreeze((Stage(("stem",), Step(3)),)), net, optimizer)
    before = {name: value.clone() for name, value in net.stem.state_dict().items()}
    frames = []
    for number, x in enumerate(batches):
        backward(x)
        if number < 3:
            for parameter in net.stem.parameters():  # what momentum and weight decay would move it by
                parameter.grad = torch.zeros_like(parameter)
        step()
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
        same = {name: torch.equal(before[name], value) for name, value in net.stem.state_dict().items()}
        assert set(same.values()) == {number < 3}
        assert unfreezing.state_dict()["steps"] == number + 1
    assert frames[2] == frames[1], "nothing is traced again while nothing changes but the counts"
    assert len(set(frames[5:])) == 1


def test_momentum_moves_what_is_frozen_by_hand_in_a_compiled_step(make_net, batches):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step = torch.compile(optimizer.step, backend="eager")
    net(batches[0]).square().mean().backward()
    step()
    net.stem.requires_grad_(False)
    before = net.stem[0].weight.detach().clone()
    net.stem[0].weight.grad = torch.zeros_like(before)
    step()
    assert not torch.equal(net.stem[0].weight, before)

"""The watch sees a loop, and leaves no trace in it: results, random states, hooks and torch itself."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as module_hooks
from torch.optim import Optimizer, lr_scheduler

import frostline as fl
from frostline.audit import taps
from frostline.audit.events import Backward, Forward, GradFlag, ModeCall, Step, ZeroGrad
from frostline.audit.watch import Stopped, Watch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))


def frozen_trunk(seen):
    model = Net()
    model.trunk.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    for _ in range(2):
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(6, 3, 8, 8)), torch.randint(4, (6,))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            model(torch.randn(6, 3, 8, 8))
    return [model], [optimizer]


def transformer(seen):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(4):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(3, 5, 16)).square().mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(torch.randn(3, 5, 16))
    return [model], [optimizer]


def gan(seen):
    g = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    d = nn.utils.spectral_norm(nn.Linear(3, 1))
    opt_g, opt_d = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters(), foreach=False)
    for _ in range(4):
        opt_d.zero_grad()
        (d(g(torch.randn(5, 4)).detach()).mean() - d(torch.randn(5, 3)).mean()).backward()
        opt_d.step()
        opt_g.zero_grad()
        (-d(g(torch.randn(5, 4))).mean()).backward()
        opt_g.step()
    return [g, d], [opt_g, opt_d]


def mixed_precision_with_average(seen):
    model = Net()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(6):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(torch.randn(6, 3, 8, 8)), torch.randint(4, (6,))) / 2
        scaler.scale(loss).backward()
        if step % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_value_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            with torch.no_grad():
                for a, b in zip(average.parameters(), model.parameters(), strict=True):
                    a.lerp_(b, 0.1)
    return [model, average], [optimizer]


def closure(seen):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    x, y = torch.randn(8, 3), torch.randn(8, 1)

    def loss():
        optimizer.zero_grad()
        value = F.mse_loss(model(x), y)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(loss)
    return [model], [optimizer]


def recurrent(seen):
    model = nn.LSTM(4, 6, num_layers=2, dropout=0.3)
    head = nn.Linear(6, 2)
    optimizer = torch.optim.RMSprop([*model.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        out, _ = model(torch.randn(5, 3, 4))
        head(out[-1]).square().sum().backward()
        optimizer.step()
    return [model, head], [optimizer]


LOOPS = [frozen_trunk, transformer, gan, mixed_precision_with_average, closure, recurrent]


def state_after(loop, *, watched: bool):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    if watched:
        with fl.watch() as seen:
            models, optimizers = loop(seen)
        assert seen.missed == []
    else:
        models, optimizers = loop(None)
    rng = (torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate())
    tensors = [t.clone() for m in models for t in [*m.parameters(), *m.buffers()]]
    grads = [None if p.grad is None else p.grad.clone() for m in models for p in m.parameters()]
    modes = [m.training for model in models for m in model.modules()]
    states = [
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in o.state[p].items()}
        for o in optimizers
        for group in o.param_groups
        for p in group["params"]
    ]
    return tensors, grads, modes, states, rng, [sorted(m.__dict__) for model in models for m in model.modules()]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_results_random_states_and_modules_are_the_same_to_the_bit(loop):
    assert same(state_after(loop, watched=False), state_after(loop, watched=True))


def test_the_comparison_itself_bites():
    def drawing(seen):
        result = frozen_trunk(seen)
        if seen is not None:
            torch.rand(1)
        return result

    assert not same(state_after(drawing, watched=False), state_after(drawing, watched=True))


def everything_that_is_tapped():
    places = [
        (nn.Module, "__call__ train state_dict load_state_dict zero_grad compile"),
        (torch.Tensor, "requires_grad requires_grad_"),
        (torch, "save compile"),
        (torch.autograd, "backward"),
        (Optimizer, "__init__ add_param_group zero_grad load_state_dict state_dict"),
        (torch.amp.GradScaler, "scale unscale_ update state_dict load_state_dict"),
        (torch.nn.utils.clip_grad, "_clip_grads_with_norm_ clip_grad_value_"),
        (torch.nn.utils, "clip_grad_norm_ clip_grad_value_"),
        (torch.nn.utils.stateless, "_functional_call"),
        (torch.optim.swa_utils, "update_bn"),
        (nn.DataParallel, "__init__"),
        (nn.parallel.DistributedDataParallel, "__init__"),
        (warnings, "showwarning"),
        *((c, "__init__ step state_dict load_state_dict") for c in vars(lr_scheduler).values() if isinstance(c, type)),
    ]
    found = {(str(owner), name): vars(owner).get(name) for owner, names in places for name in names.split()}
    rooms = (module_hooks, __import__("sys").modules["torch.optim.optimizer"])
    found |= {
        (r.__name__, n): dict(v)
        for r in rooms
        for n, v in vars(r).items()
        if n.startswith("_global") and isinstance(v, dict)
    }
    return found


def test_torch_is_put_back_also_after_an_exception():
    before = everything_that_is_tapped()
    with fl.watch():
        assert everything_that_is_tapped() != before
    assert everything_that_is_tapped() == before
    with pytest.raises(KeyError), fl.watch() as seen:
        raise KeyError("lost")
    assert everything_that_is_tapped() == before
    assert seen.ended == "crashed"
    assert seen.crash.type == "KeyError"
    assert seen.crash.place.text == 'raise KeyError("lost")'


def test_nested_watches_both_see_and_both_go():
    before = everything_that_is_tapped()
    model = nn.Linear(2, 1)
    with fl.watch(model) as outer:
        with fl.watch(model) as inner:
            model(torch.ones(1, 2)).sum().backward()
        model(torch.ones(1, 2)).sum().backward()
    assert everything_that_is_tapped() == before
    assert (len(inner.of(Backward)), len(outer.of(Backward))) == (1, 2)


def test_a_tap_that_somebody_kept_passes_on():
    with fl.watch():
        kept = nn.Module.train
        call = nn.Linear(2, 1).__call__
    model = nn.Linear(2, 1)
    assert kept(model, False).training is False
    assert call(torch.ones(1, 2)).shape == (1, 1)


def test_models_that_are_copied_and_pickled_meanwhile_hold_nothing_of_the_watch():
    model = Net()
    with fl.watch(model):
        model(torch.randn(2, 3, 8, 8))
        text = pickle.dumps(model)
        twin = copy.deepcopy(model)
    assert b"frostline" not in text
    assert sorted(twin.__dict__) == sorted(Net().__dict__)


def test_what_is_watched_is_let_go_of():
    import weakref

    model = Net()
    gone = weakref.ref(model)
    with fl.watch(model):
        model(torch.randn(2, 3, 8, 8))
    del model
    gc.collect()
    assert gone() is None


def test_events_come_in_order_with_the_lines_of_the_user():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        model.train()
        optimizer.zero_grad()
        model(torch.ones(4, 2)).sum().backward()
        optimizer.step()
        model.bias.requires_grad = False
        model.eval()
    kinds = [type(event) for event in seen.events]
    assert kinds == [ModeCall, ZeroGrad, Forward, Backward, Step, GradFlag, ModeCall]
    assert [event.at for event in seen.events] == sorted(event.at for event in seen.events)
    assert [event.place.text for event in seen.events] == [
        "model.train()",
        "optimizer.zero_grad()",
        "model(torch.ones(4, 2)).sum().backward()",
        "model(torch.ones(4, 2)).sum().backward()",
        "optimizer.step()",
        "model.bias.requires_grad = False",
        "model.eval()",
    ]
    assert seen.forwards[0].rows == 4
    assert seen.forwards[0].shapes == ((4, 2),)
    assert seen.steps[0].rates == (0.1,)
    assert (seen.steps[0].forwards, seen.steps[0].backwards, seen.steps[0].without_grad) == (1, 1, 0)
    assert (seen.models[0].name, seen.optimizers[0].name) == ("model", "optimizer")


def test_the_contract_that_is_inferred_and_the_one_that_is_declared():
    model = Net()
    model.trunk.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)

    def loop():
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        optimizer.step()

    with fl.watch(model, optimizer) as seen:
        loop()
    stays = {t.path: t.must_stay for t in seen.models[0].tensors.values() if t.must_stay}
    assert set(stays.values()) == {"requires_grad"}
    assert "trunk.1.running_mean" in stays
    assert seen.models[0].declared is False
    with fl.watch(model, optimizer, fl.audit.Contract(frozen=("head",), moving=("trunk.1.running_*",))) as seen:
        loop()
    tensors = seen.models[0].tensors
    assert tensors["head.weight"].must_stay == "declared"
    assert tensors["head.weight"].moved_in_step == 1
    assert tensors["trunk.1.running_mean"].must_stay == ""
    assert tensors["trunk.1.running_mean"].may_move
    assert seen.models[0].declared


def test_a_contract_that_names_nothing_is_refused_at_once():
    with pytest.raises(fl.errors.NothingSelected, match="truk"), fl.watch(Net(), contract=fl.audit.Contract(("truk",))):
        pass
    with fl.watch(Net(), contract=fl.audit.Contract(("*", "!head*"))):
        pass


def test_a_part_that_no_optimizer_has_is_meant_to_stay():
    model = Net()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        optimizer.step()
    tensors = seen.models[0].tensors
    assert tensors["trunk.1.running_mean"].must_stay == "optimizer"
    assert tensors["trunk.1.running_mean"].moved
    assert tensors["trunk.0.weight"].moved is False


def writes_of(write):
    """A frozen part that a hook of the user writes to after every step, by some way of writing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with fl.watch(model, optimizer, every=1) as seen:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
            write(model[0].weight)
    assert seen.missed == []
    return seen.models[0].tensors["0.weight"]


def test_each_way_of_writing_is_seen_and_told_apart():
    def by_numpy(w):
        w.detach().numpy()[0] += 1

    def by_data(w):
        w.data.add_(1)

    def under_no_grad(w):
        with torch.no_grad():
            w.mul_(1.5)

    def by_another_storage(w):
        torch.from_dlpack(w.detach()).add_(1)

    def by_storage(w):
        w.untyped_storage()[0] = (w.untyped_storage()[0] + 1) % 128

    found = {}
    for write in (by_numpy, by_data, under_no_grad, by_another_storage, by_storage):
        tensor = writes_of(write)
        assert tensor.moved, write.__name__
        assert tensor.moved_between >= 2, write.__name__
        found[write.__name__] = tensor.writes[0]
    assert found["by_numpy"].outside
    assert (found["by_data"].op, found["by_data"].via_data) == ("aten.add_", True)
    assert (found["under_no_grad"].op, found["under_no_grad"].via_data) == ("aten.mul_", False)
    assert found["under_no_grad"].place.text == "w.mul_(1.5)"
    assert found["by_another_storage"].op == "aten.add_"


def test_versions_alone_would_miss_the_statistics():
    """The failing twin: what `_version` says of running statistics, measured on torch 2.13."""
    norm = nn.BatchNorm1d(2)
    before = norm.running_mean._version, norm.running_mean.clone()
    norm(torch.randn(4, 2))
    assert norm.running_mean._version == before[0]
    assert not torch.equal(norm.running_mean, before[1])


def test_a_fused_optimizer_is_seen_to_move_what_it_moves():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    with fl.watch(model, optimizer) as seen:
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    assert all(t.moved and t.moved_in_step for t in seen.models[0].parameters)


def test_compiled_models_are_watched_and_stay_compiled():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].requires_grad_(False)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(compiled, optimizer) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            compiled(torch.randn(4, 3)).sum().backward()
            optimizer.step()
    assert counter.frame_count == 1
    watched = seen.models[0]
    assert (watched.compiled, watched.wrapper) == (True, "OptimizedModule")
    assert watched.tensors["1.running_mean"].moved
    assert watched.traced is False
    assert "torch.compile is in use" in seen.missed[0]
    compiled(torch.randn(4, 3))
    torch._dynamo.reset()


def test_scripted_modules_are_named_as_not_looked_into():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 1))
    with fl.watch() as seen:
        scripted(torch.ones(1, 2))
    assert seen.models == []


def test_forked_children_and_other_threads_are_not_listened_to():
    import threading

    model = nn.Linear(2, 1)
    with fl.watch(model) as seen:
        thread = threading.Thread(target=lambda: model(torch.ones(1, 2)))
        thread.start()
        thread.join()
    assert seen.forwards == []
    assert taps._LISTENING is not None


def test_a_stop_is_no_exception_that_a_loop_would_catch():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def after(steps):
        if steps == 2:
            raise Stopped

    watch = Watch([model], [optimizer], None, every=10, trace=True, after_step=after)
    with pytest.raises(Stopped), watch as seen:
        for _ in range(10):
            try:
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
            except Exception:
                pytest.fail("the loop caught it")
    assert (seen.ended, len(seen.steps)) == ("stopped", 2)


class Doubling(torch.optim.SGD):
    """A class of the user's whose step calls the one it inherits: torch runs its hooks around both."""

    def step(self, closure=None):
        if self.fails:
            self.fails = False
            super().step(closure)
            raise ArithmeticError
        return super().step(closure)

    fails = False


def test_a_step_inside_of_a_step_is_one_step_also_after_one_that_raised():
    model = nn.Linear(2, 1)
    optimizer = Doubling(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        for fails in (False, True, False):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.fails = fails
            if fails:
                with pytest.raises(ArithmeticError):
                    optimizer.step()
            else:
                optimizer.step()
    assert seen.missed == []
    assert len(seen.steps) == 2
    assert [step.backwards for step in seen.steps] == [1, 2]


def test_the_repr_of_what_was_seen_is_a_line() -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with fl.watch(net, optimizer) as seen:
        for _ in range(3):
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert repr(seen).startswith("seen of net (Linear); optimizers: 1, steps: 3, events: ")
    assert repr(seen).endswith("; finished")
    assert len(repr(seen)) < 120

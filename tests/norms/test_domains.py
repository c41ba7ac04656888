"""The current domain of a model, what it survives, and the way back to plain layers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import DomainError, NonFiniteStatistics
from frostline.norms.domain_forward import domain_buffers, forward_of
from frostline.norms.domain_split import split_domains
from frostline.norms.domains import domain, domains_of

NAMES = ["ground", "aerial"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def net():
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
        nn.Linear(6, 2),
    )


@pytest.fixture
def model():
    model = net()
    model(torch.randn(16, 4))
    return model


@pytest.fixture
def split(model):
    split_domains(model, NAMES)
    return model


def views():
    return {"ground": torch.randn(16, 4), "aerial": 3 * torch.randn(16, 4) + 2}


def train(model, steps=3, names=NAMES):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x = views()
        for name in names:
            with domain(model, name):
                model(x[name]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def equal_states(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_by_domain_serves_both_and_through_shared_statistics_neither(model):
    """The siamese net of scenario S8: in eval mode each view is normalized as it was in training, or not."""
    plain = copy.deepcopy(model)
    split_domains(model, NAMES)
    for _ in range(100):
        x = views()
        for name in NAMES:
            plain(x[name])
            with domain(model, name):
                model(x[name])
    model.eval()
    plain.eval()

    def output_of_first_norm(model, name):
        seen = []
        handle = model[1].register_forward_hook(lambda _m, _a, out: seen.append(out))
        model({key: torch.cat([views()[key] for _ in range(50)]) for key in NAMES}[name])
        handle.remove()
        return seen[0].mean(0).abs().mean()

    for name in NAMES:
        with domain(model, name):
            assert output_of_first_norm(model, name) < 0.15
        assert output_of_first_norm(plain, name) > 0.3


def test_blocks_nest_and_end_on_exceptions(split):
    layers = [split[1], split[3][1]]

    def now():
        return [forward_of(layer).now for layer in layers]

    with domain(split, "ground"):
        with domain(split, "aerial"):
            assert now() == ["aerial", "aerial"]
        assert now() == ["ground", "ground"]
        with domain(split[3], "aerial"):
            assert now() == ["ground", "aerial"]
        with pytest.raises(ZeroDivisionError), domain(split, tags=NAMES):
            raise ZeroDivisionError
        assert now() == ["ground", "ground"]
    assert now() == [None, None]


def test_an_unknown_domain_names_the_known(split):
    with pytest.raises(DomainError) as error, domain(split, "arial"):
        pass
    assert str(error.value) == "there is no domain 'arial'\n  known: ground, aerial\n  fix: 'aerial'?"


def test_neither_or_both_of_name_and_tags(split):
    for arguments in ({}, {"name": "ground", "tags": ["ground"]}):
        with pytest.raises(DomainError, match="either the name of a domain, or tags"), domain(split, **arguments):
            pass


def test_a_model_that_is_not_split(model):
    with pytest.raises(DomainError, match=r"no layer of Sequential keeps statistics by domain\n  fix: .*split_domains"):
        domains_of(model)


def test_parts_with_domains_of_their_own(model):
    split_domains(model, NAMES, "1")
    split_domains(model, ["day", "night"], "3")
    with pytest.raises(DomainError) as error, domain(model, "day"):
        pass
    assert str(error.value) == (
        "parts of Sequential are split into different domains\n  1: ground, aerial\n  3.1: day, night\n"
        "  fix: name the part: domain(model.part, ...)"
    )
    with domain(model[1], "aerial"), domain(model[3], "night"):
        model(torch.randn(4, 4))
    assert domain_buffers(model[3][1], "night")[2].item() == domain_buffers(model[1], "aerial")[2].item() == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_looked_through(split, wrap):
    wrapped, x = wrap(split.eval()), views()["aerial"]
    split[1].running_mean_aerial.fill_(1)
    with domain(split, "aerial"):
        expected = split(x)
    torch.compiler.reset()
    with domain(wrapped, "aerial"):
        assert torch.equal(wrapped(x), expected)
    assert domains_of(wrapped).root is split


def test_state_dict_round_trip(split):
    train(split)
    other = net()
    split_domains(other, NAMES)
    other.load_state_dict(split.state_dict())
    assert equal_states(split, other)
    for name in NAMES:
        with domain(split.eval(), name), domain(other.eval(), name):
            x = torch.randn(4, 4)
            assert torch.equal(split(x), other(x))


def test_a_state_dict_from_before_the_split_lacks_the_domains(model):
    plain, model = copy.deepcopy(model.state_dict()), net()
    split_domains(model, NAMES)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1.running_mean_ground\""):
        model.load_state_dict(plain)
    result = model.load_state_dict(plain, strict=False)
    assert len(result.missing_keys) == 12
    assert not result.unexpected_keys
    assert model[1].running_mean_ground.abs().max() == 0
    assert torch.equal(model[1].running_mean, plain["1.running_mean"])


def test_saved_whole_it_loads_and_works(split):
    train(split)
    file = io.BytesIO()
    with domain(split, "ground"):
        torch.save(split, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert domains_of(loaded).names == ("ground", "aerial")
    assert equal_states(split, loaded)
    x = torch.randn(4, 4)
    with pytest.raises(DomainError, match="none of them is current"):
        loaded(x)
    with domain(split, "aerial"), domain(loaded, "aerial"):
        assert torch.equal(split(x), loaded(x))


def test_undo_is_the_model_from_before(model):
    before, x = copy.deepcopy(model), torch.randn(8, 4)
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    domains = split_domains(model, NAMES, share_affine=False)
    with domain(model, "aerial"):
        model(torch.randn(16, 4))
    domains.undo()
    assert equal_states(model, before)
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == objects
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert torch.equal(model(x), before(x))
    assert equal_states(model, before)
    with pytest.raises(DomainError, match=r"no longer split: 1, 3\.1"):
        domains.undo()


@pytest.mark.parametrize("share_affine", [True, False])
def test_merging_into_a_domain_keeps_exactly_that_one(model, share_affine):
    keys = list(model.state_dict())
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    domains = split_domains(model, NAMES, share_affine=share_affine)
    train(model)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(8, 4)
    with domain(model.eval(), "aerial"):
        out = model(x)
    domains.merge(into="aerial")
    assert torch.equal(model(x), out)
    assert list(model.state_dict()) == keys
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == objects
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert not any("forward" in m.__dict__ for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.get(f"{key}_aerial", expected[key]))
    net().load_state_dict(model.state_dict())


@pytest.mark.parametrize("weights", [None, {"ground": 1, "aerial": 3}, {"aerial": 0.25, "ground": 0}])
def test_the_mixture_is_that_of_the_pooled_values(weights):
    """By hand in float64: pool values in these proportions and take their moments."""
    layer = nn.BatchNorm1d(3, momentum=None).double()
    domains = split_domains(layer, NAMES)
    data = {"ground": torch.randn(400, 3).double(), "aerial": 2 * torch.randn(400, 3).double() + 4}
    for name, x in data.items():
        with domain(layer, name):
            layer(x)
    domains.merge(weights=weights)
    shares = {name: (weights or {"ground": 1, "aerial": 1}).get(name, 0) for name in NAMES}
    pooled = torch.cat([data[name].repeat(int(4 * shares[name]), 1) for name in NAMES])
    torch.testing.assert_close(layer.running_mean, pooled.mean(0), rtol=1e-12, atol=1e-12)
    # The layer stores unbiased variances of 400 values, the mixture of them is that of 400/399 of each variance.
    within = sum(shares[name] * x.var(0) for name, x in data.items()) / sum(shares.values())
    between = pooled.var(0, unbiased=False) - within * 399 / 400
    torch.testing.assert_close(layer.running_var, within + between, rtol=1e-12, atol=1e-12)
    assert layer.num_batches_tracked.item() == 2
    if not weights or all(weights.values()):
        # The naive way, the mean of the variances, misses what lies between the means.
        assert (layer.running_var - within).min() > 2


def test_the_mixture_of_instance_norm_is_what_it_keeps_of_pooled_data():
    layer = nn.InstanceNorm1d(3, momentum=1.0, track_running_stats=True).double()
    pooled = copy.deepcopy(layer)
    domains = split_domains(layer, NAMES)
    data = [torch.randn(8, 3, 50).double(), 2 * torch.randn(8, 3, 50).double() + 4]
    for name, x in zip(NAMES, data, strict=True):
        with domain(layer, name):
            layer(x)
    pooled(torch.cat(data))
    domains.merge()
    torch.testing.assert_close(layer.running_mean, pooled.running_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, pooled.running_var, rtol=1e-12, atol=1e-12)


def test_the_mixture_takes_a_step_of_stock_afterwards(split):
    train(split)
    domains_of(split).merge()
    other = net()
    other.load_state_dict(split.state_dict())
    x = torch.randn(8, 4)
    assert torch.equal(split(x), other(x))
    assert equal_states(split, other)


def test_merges_that_do_not_fit_change_nothing(split):
    domains = domains_of(split)
    split[3][1].running_var_aerial[0] = float("nan")
    before = copy.deepcopy(split.state_dict())
    for arguments, message in [
        ({"into": "arial"}, "there is no domain 'arial'\n  known: ground, aerial, mixture\n  fix: 'aerial'"),
        ({"into": "aerial", "weights": {"aerial": 1}}, "weights belong to the mixture"),
        ({"weights": {"ground": 1}}, "a weight of zero or more for each of ground, aerial"),
        ({"weights": {"ground": 1, "aerial": -1}}, "not all of them zero\n  found: {'ground': 1, 'aerial': -1}"),
        ({"weights": {"ground": 0, "aerial": 0}}, "a weight of zero or more"),
        ({"weights": {"ground": 1, "aerial": float("nan")}}, "a weight of zero or more"),
    ]:
        with pytest.raises(DomainError) as error:
            domains.merge(**arguments)
        assert message in str(error.value)
    with pytest.raises(NonFiniteStatistics, match=r"the statistics of 'aerial' in layer '3\.1' are not finite"):
        domains.merge()
    after = split.state_dict()
    assert all(torch.equal(before[key].nan_to_num(7), after[key].nan_to_num(7)) for key in before | after)
    assert domains_of(split) == domains
    domains.merge(into="aerial")  # one domain is taken as it is
    assert split[3][1].running_var[0].isnan()


def test_weights_of_their_own_have_no_mixture(model):
    domains = split_domains(model, NAMES, share_affine=False)
    with pytest.raises(DomainError, match=r"have no mixture\n  where: 1, 3\.1\n  fix: merge\(into='ground'\)"):
        domains.merge()
    domains.merge(into="ground")


def test_a_merge_that_fails_halfway_changes_nothing(split, monkeypatch):
    train(split)
    before, copy_, writes = copy.deepcopy(split), torch.Tensor.copy_, []

    def failing(self, value):
        writes.append(self)
        if len(writes) == 4:
            raise MemoryError
        return copy_(self, value)

    monkeypatch.setattr(torch.Tensor, "copy_", failing)
    with pytest.raises(MemoryError):
        domains_of(split).merge()
    monkeypatch.undo()
    assert equal_states(split, before)
    assert domains_of(split).paths == ("1", "3.1")


def test_a_frozen_split_model_does_not_move(split):
    unheld = copy.deepcopy(split)
    hold = fl.freeze(split, "*")
    for model in (split, unheld):
        model.train()
        for name in NAMES:
            with domain(model, name):
                model(views()[name])
    assert not hold.verify()
    assert not equal_states(split, unheld)
    with pytest.raises(DomainError, match=r"merge: 2 of 2 layers are held: 1, 3\.1\n  fix: thaw them first"):
        domains_of(split).merge()
    with pytest.raises(DomainError, match="undo: 2 of 2 layers are held"):
        domains_of(split).undo()
    hold.thaw()
    domains_of(split).merge("ground")


def test_one_held_layer_stops_a_merge_of_all(split):
    before = copy.deepcopy(split)
    with fl.frozen(split, "3", level="stats"):
        with pytest.raises(DomainError, match=r"merge: 1 of 2 layers are held: 3\.1"):
            domains_of(split).merge()
        assert equal_states(split, before)
    domains_of(split).merge()


def test_a_split_beside_a_held_part_leaves_the_hold_whole(model):
    hold = fl.freeze(model, "0", "1")
    domains = split_domains(model, NAMES)
    assert domains.paths == ("3.1",)
    train(model.train())
    assert not hold.verify()


def test_checkpointed_parts_need_their_domain_in_backward(split):
    plain = copy.deepcopy(split)
    x = torch.randn(8, 4)
    with domain(plain, "aerial"):
        plain(x).square().sum().backward()
    with domain(split, "aerial"):
        checkpoint(split, x, use_reentrant=False).square().sum().backward()
    for p, q in zip(split.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    with domain(split, "aerial"):
        loss = checkpoint(split, x, use_reentrant=False).square().sum()
    with pytest.raises(DomainError, match="none of them is current"):
        loss.backward()


class Counting:
    """A compiler that only counts what it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield Counting()
    torch.compiler.reset()


@pytest.mark.parametrize("share_affine", [True, False])
def test_compiled_once_for_each_domain_and_mode(model, compiler, share_affine):
    split_domains(model, NAMES, share_affine=share_affine)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    for graphs, mode in [(2, True), (4, False)]:
        model.train(mode)
        eager.train(mode)
        for step in range(6):
            x = torch.randn(8, 4)
            with domain(compiled, NAMES[step % 2]), domain(eager, NAMES[step % 2]):
                a, b = compiled(x), eager(x)
            a.square().sum().backward()
            b.square().sum().backward()
            assert torch.equal(a, b)
            assert compiler.graphs == min(graphs, graphs - 1 + step)
        assert equal_states(model, eager)
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


# Dynamo looks at the gradient of a tensor that it resumes with, and hides the warning, unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_with_tags_nothing_is_compiled_again_in_later_steps(split, compiler):
    eager = copy.deepcopy(split)
    compiled = torch.compile(split, backend=compiler)
    seen = set()
    for grounds in (4, 5, 6, 0, 3, 8, 2):
        tags = ["ground"] * grounds + ["aerial"] * (8 - grounds)
        x = torch.randn(8, 4)
        with domain(compiled, tags=tags), domain(eager, tags=tags):
            assert torch.equal(compiled(x), eager(x))
        seen.add(compiler.graphs)
    assert len(seen) == 1
    assert equal_states(split, eager)


def test_compiled_without_a_domain_says_so(split, compiler):
    compiled = torch.compile(split, backend=compiler)
    with pytest.raises(DomainError, match=r"layer '1' .* none of them is current"):
        compiled(torch.randn(8, 4))


def test_exported_in_a_block_it_is_the_model_of_that_domain(split):
    train(split)
    split.eval()
    x = torch.randn(8, 4)
    for name in NAMES:
        with domain(split, name):
            exported = torch.export.export(split, (x,)).module()
            assert torch.equal(exported(x), split(x))

"""Parameter groups: each parameter once, in order, with the rate and the decay of its place."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.errors import ModelError, NothingSelected, SelectionError
from frostline.optim import depth_of, param_groups


class Net(nn.Module):
    """A token and an embedding, a row of blocks, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.blocks(self.embed(x) + self.cls_token))[:, 0])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(4, 4)
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * self.linear(self.norm(x))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Net()


def members(groups) -> list[str]:
    return [name for group in groups for name in group["param_names"]]


def setting(groups, key: str) -> dict[str, object]:
    return {name: group[key] for group in groups for name in group["param_names"]}


def assert_each_once(model: nn.Module, groups) -> None:
    """Each tensor in one group, under its first name, beside that name."""
    live = dict(model.named_parameters())
    assert sorted(members(groups)) == sorted(live)
    for group in groups:
        assert len(group["params"]) == len(group["param_names"])
        assert all(live[name] is tensor for name, tensor in zip(group["param_names"], group["params"], strict=True))


def test_rates_fall_by_the_factor_from_the_head_down(net):
    groups = param_groups(net, 0.3, layer_decay=0.75)
    assert_each_once(net, groups)
    rate = setting(groups, "lr")
    assert rate["fc.weight"] == rate["fc.bias"] == 0.3, "the scale of the head is exactly 1"
    assert [rate[f"blocks.{n}.linear.weight"] for n in (2, 1, 0)] == [0.3 * 0.75**n for n in (1, 2, 3)]
    assert rate["norm.weight"] == 0.3 * 0.75
    assert rate["cls_token"] == rate["embed.weight"] == 0.3 * 0.75**4
    assert [group["name"] for group in groups] == ["layer 0", "layer 1", "layer 2", "layer 3", "head"]
    assert [group["layer"] for group in groups] == [0, 1, 2, 3, 4]
    assert setting(groups, "initial_lr") == rate


def test_without_rates_by_layer_there_is_a_trunk_and_a_head(net):
    groups = param_groups(net, 0.1, head_lr=1.0)
    assert_each_once(net, groups)
    assert [(group["name"], group["lr"]) for group in groups] == [("trunk", 0.1), ("head", 1.0)]
    assert members(groups) == [name for name, _ in net.named_parameters()], "in the order of the model"
    assert groups[0]["layer"] == 3
    assert [group["name"] for group in param_groups(nn.Sequential(nn.Linear(1, 1)), 0.1)] == ["all"]


def test_head_lr_wins_over_the_rates_by_layer_which_start_at_lr(net):
    rate = setting(param_groups(net, 0.1, head_lr=5.0, layer_decay=0.5), "lr")
    assert rate["fc.weight"] == 5.0
    assert rate["blocks.2.gamma"] == 0.05


def test_a_factor_of_one_keeps_the_groups_apart(net):
    groups = param_groups(net, 0.1, layer_decay=1.0)
    assert len(groups) == 5
    assert {group["lr"] for group in groups} == {0.1}


@pytest.mark.parametrize("head", ["blocks.2", ["norm", "fc"], ("blocks.2.*", "norm", "fc"), nn.LayerNorm])
def test_any_part_can_be_the_head(net, head):
    groups = param_groups(net, 0.1, head=head, head_lr=1.0, layer_decay=0.5)
    assert_each_once(net, groups)
    in_head = {name for name, rate in setting(groups, "lr").items() if rate == 1.0}
    assert in_head == depth_of(net, head=head).head
    assert all(group["layer"] == groups.depths.deepest for group in groups if group["lr"] == 1.0)


def test_the_same_groups_by_every_way_that_tells_the_same(net):
    expected = [(g["param_names"], g["lr"]) for g in param_groups(net, 0.1, layer_decay=0.5)]
    stem = ["cls_token", "embed"]
    layers = [lambda path, module: path == "embed", "blocks.0", "blocks.1", re.compile("blocks[.]2|norm")]
    for by, example in (
        ("blocks", None),
        ("run", torch.zeros(2, 3, dtype=torch.long)),
        ({"cls_token": 0, "embed": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "norm": 3}, None),
        (
            lambda path: 0 if path.split(".")[0] in stem else 3 if path.startswith("norm") else depth_by_number(path),
            None,
        ),
    ):
        groups = param_groups(net, 0.1, layer_decay=0.5, by=by, example=example)
        assert [(g["param_names"], g["lr"]) for g in groups] == expected
    with pytest.raises(SelectionError, match="in no layer: cls_token"):
        param_groups(net, 0.1, layer_decay=0.5, by=layers)


def depth_by_number(path: str) -> int:
    return int(path.split(".")[1]) + 1 if path.startswith("blocks.") else 9


def test_what_decays_by_default(net):
    groups = param_groups(net, 0.1, weight_decay=0.05)
    decay = setting(groups, "weight_decay")
    assert set(decay.values()) == {0.0, 0.05}
    assert {name for name, value in decay.items() if value} == {
        "cls_token",
        "embed.weight",
        "blocks.0.linear.weight",
        "blocks.1.linear.weight",
        "blocks.2.linear.weight",
        "fc.weight",
    }, "no biases, no norms, nothing of one dimension; embeddings do"
    assert [group["name"] for group in groups] == ["trunk", "trunk, no decay", "head", "head, no decay"]


def test_scales_of_norms_do_not_decay_whatever_their_shape():
    model = nn.Sequential(nn.LayerNorm((3, 3)), nn.Linear(3, 1), nn.GRU(2, 2))
    decay = setting(param_groups(model, 0.1, weight_decay=1.0), "weight_decay")
    assert {name for name, value in decay.items() if value} == {"1.weight", "2.weight_ih_l0", "2.weight_hh_l0"}


def test_what_the_model_itself_spares(net):
    net.no_weight_decay = lambda: {"cls_token", "blocks.?.linear.weight", "embed"}
    decay = setting(param_groups(net, 0.1, weight_decay=1.0), "weight_decay")
    assert {name for name, value in decay.items() if value} == {"fc.weight"}
    net.no_weight_decay = lambda: {"emb", "cls"}
    decay = setting(param_groups(net, 0.1, weight_decay=1.0), "weight_decay")
    assert decay["embed.weight"] == decay["cls_token"] == 1.0, "the beginning of a name is no name"
    net.no_weight_decay = lambda: None
    assert setting(param_groups(net, 0.1, weight_decay=1.0), "weight_decay")["cls_token"] == 1.0


@pytest.mark.parametrize("none", [[], ()])
def test_an_empty_list_lets_everything_decay(net, none):
    net.no_weight_decay = lambda: {"cls_token"}
    groups = param_groups(net, 0.1, weight_decay=0.05, no_decay=none)
    assert {group["weight_decay"] for group in groups} == {0.05}
    assert [group["name"] for group in groups] == ["trunk", "head"]


def test_selectors_of_what_does_not_decay(net):
    for no_decay in ("embed", ["embed"], net.embed, net.embed.weight, nn.Embedding):
        decay = setting(param_groups(net, 0.1, weight_decay=1.0, no_decay=no_decay), "weight_decay")
        assert {name for name, value in decay.items() if not value} == {"embed.weight"}
    with pytest.raises(NothingSelected, match="'bias' matched nothing"):
        param_groups(net, 0.1, weight_decay=1.0, no_decay="bias")


def test_without_decay_there_are_no_groups_for_it(net):
    assert [group["name"] for group in param_groups(net, 0.1)] == ["trunk", "head"]


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"wte": nn.Embedding(4, 2), "mid": nn.Linear(2, 2), "lm_head": nn.Linear(2, 4)})
    model["lm_head"].weight = model["wte"].weight
    return model


def test_a_tied_tensor_is_once_in_the_groups_under_its_first_name():
    model = tied()
    groups = param_groups(model, 1.0, head_lr=8.0, layer_decay=0.5)
    assert_each_once(model, groups)
    rate = setting(groups, "lr")
    assert rate == {"wte.weight": 0.25, "mid.weight": 0.5, "mid.bias": 0.5, "lm_head.bias": 8.0}
    torch.optim.SGD(groups, lr=0.1)


def test_a_tied_tensor_is_spared_under_any_of_its_names():
    model = tied()
    for no_decay in ("wte", "lm_head"):
        assert setting(param_groups(model, 1.0, weight_decay=1.0, no_decay=no_decay), "weight_decay")["wte.weight"] == 0
    assert setting(param_groups(model, 1.0, weight_decay=1.0), "weight_decay")["wte.weight"] == 1.0


def test_a_rate_for_a_head_that_is_all_tied_is_refused():
    model = tied()
    model["lm_head"].bias = None
    assert setting(param_groups(model, 1.0), "lr")["wte.weight"] == 1.0
    with pytest.raises(ModelError, match=r"all of the head, lm_head.weight, is tied to parameters of the trunk"):
        param_groups(model, 1.0, head_lr=2.0)


def test_a_module_under_two_names_is_once_in_the_groups():
    block = Block()
    model = nn.ModuleDict({"a": block, "b": nn.Linear(4, 4), "again": block})
    assert_each_once(model, param_groups(model, 0.1, layer_decay=0.5, weight_decay=0.1))


def test_frozen_parameters_are_in_and_cost_no_state(net):
    net.blocks.requires_grad_(False)
    groups = param_groups(net, 0.1, layer_decay=0.5, weight_decay=0.1)
    assert_each_once(net, groups)
    optimizer = torch.optim.AdamW(groups)
    net(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    before = [parameter.clone() for parameter in net.blocks.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.blocks.parameters(), strict=True))
    held = {id(parameter) for parameter in net.blocks.parameters()}
    assert held.isdisjoint(map(id, optimizer.state))
    assert len(optimizer.state) == 6


def test_frozen_parameters_can_be_left_out(net):
    net.blocks.requires_grad_(False)
    groups = param_groups(net, 0.1, layer_decay=0.5, frozen="out")
    assert members(groups) == [name for name, p in net.named_parameters() if p.requires_grad]
    assert setting(groups, "lr")["embed.weight"] == 0.1 * 0.5**4, "the depth of what is left does not change"
    net.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing of Net requires gradients\n  fix: frozen='in'"):
        param_groups(net, 0.1, frozen="out")
    with pytest.raises(ModelError, match="nothing of Identity"):
        param_groups(nn.Identity(), 0.1)


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.1),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.1**step),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1),
    "ConstantLR": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 0.1, 5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_torch_scale_every_group(net, name):
    groups = param_groups(net, 0.8, head_lr=3.0, layer_decay=0.5, weight_decay=0.1)
    asked = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups)
    schedule = SCHEDULERS[name](optimizer)
    optimizer.step()
    if name != "ConstantLR":
        schedule.step()
    now = [group["lr"] for group in optimizer.param_groups]
    assert now == pytest.approx([0.1 * rate for rate in asked], rel=1e-12)
    assert [group["initial_lr"] for group in optimizer.param_groups] == asked
    assert len(set(asked)) == 5, "five rates, all scaled"


def test_a_scale_beside_the_rate_is_what_schedulers_ignore(net):
    naive = [{**group, "lr": 0.8, "initial_lr": 0.8, "lr_scale": group["lr"] / 0.8} for group in param_groups(net, 0.8)]
    naive[0]["lr_scale"] = 0.01
    optimizer = torch.optim.SGD(naive)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    optimizer.step()
    schedule.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1, "two scales, and one rate"


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax"])
def test_optimizers_take_the_groups_and_train_with_their_rates(net, optimizer):
    groups = param_groups(net, 0.1, layer_decay=0.5, weight_decay=0.0)
    made = getattr(torch.optim, optimizer)(groups, lr=123.0)
    assert [group["lr"] for group in made.param_groups] == [group["lr"] for group in groups]
    assert [group["name"] for group in made.param_groups] == [group["name"] for group in groups]
    net(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    made.step()


def test_a_step_moves_each_layer_by_its_own_rate(net):
    groups = param_groups(net, 0.5, layer_decay=0.5)
    optimizer = torch.optim.SGD(groups)
    net(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    rate = setting(groups, "lr")
    expected = {name: p.detach() - rate[name] * p.grad for name, p in net.named_parameters()}
    optimizer.step()
    assert all(torch.allclose(p, expected[name], rtol=1e-6, atol=1e-7) for name, p in net.named_parameters())


@pytest.mark.parametrize("key", ["lr", "head_lr", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
def test_numbers_that_make_no_sense(net, key, value):
    with pytest.raises(ModelError) as caught:
        param_groups(net, **{"lr": 0.1, key: value})
    assert str(caught.value) == (
        f"param_groups({key}={value}): expected a finite number, zero or more\n  fix: {key}=1e-3"
    )


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.0000001, 75, math.nan, math.inf])
def test_factors_that_make_no_sense(net, value):
    with pytest.raises(ModelError, match=r"expected 0 < factor <= 1\n  fix: layer_decay=0.75"):
        param_groups(net, 0.1, layer_decay=value)


def test_other_words_for_frozen(net):
    with pytest.raises(ModelError, match=r"frozen=True\): expected 'in' or 'out'"):
        param_groups(net, 0.1, frozen=True)


def test_a_rate_of_zero_is_one(net):
    assert {group["lr"] for group in param_groups(net, 0.0, layer_decay=0.5)} == {0.0}


def test_a_head_that_is_not_there(net):
    with pytest.raises(NothingSelected, match=r"'classifier' matched nothing"):
        param_groups(net, 0.1, head="classifier")
    del net.fc
    with pytest.raises(ModelError, match=r"head_lr=1.0\): Net does not say which part is its head\n  fix: head="):
        param_groups(net, 0.1, head_lr=1.0)


def test_layers_that_overlap_are_named(net):
    with pytest.raises(SelectionError, match=r"blocks.1.gamma.*in two layers, 'layer 1' and 'layer 2'"):
        param_groups(net, 0.1, by=["embed", "blocks", "blocks.1.gamma"], layer_decay=0.5)


def test_nothing_of_the_model_is_changed(net):
    before = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in net.named_parameters()}
    net.embed.requires_grad_(False)
    before["embed.weight"] = (id(net.embed.weight), False, net.embed.weight.detach().clone())
    param_groups(net, 0.1, layer_decay=0.5, by="run", example=torch.zeros(2, 3, dtype=torch.long))
    for name, parameter in net.named_parameters():
        identity, trains, values = before[name]
        assert (id(parameter), parameter.requires_grad) == (identity, trains)
        assert torch.equal(parameter, values)
    assert net.training
    assert all(torch.equal(block.norm.running_mean, torch.zeros(3)) for block in net.blocks)


def test_the_table_and_the_json(net):
    net.embed.requires_grad_(False)
    net.fc.requires_grad_(False)
    groups = param_groups(net, 0.1, head_lr=1.0, weight_decay=0.05)
    text = str(groups)
    assert text.splitlines()[0].split() == ["group", "depth", "rate", "decay", "tensors", "elements", "frozen"]
    assert text.splitlines()[2].split() == ["trunk", "3", "0.1", "0.05", "5", "80", "1", "of", "5"]
    assert text.splitlines()[4].split() == ["head", "4", "1", "0.05", "1", "8", "frozen"]
    assert text.endswith("4 groups, 21 tensors, depth by the nesting of modules, in the order of registration")
    data = json.loads(json.dumps(groups.to_json()))
    assert data["schema_version"] == 1
    assert [row["name"] for row in data["groups"]] == ["trunk", "trunk, no decay", "head", "head, no decay"]
    assert sum(row["elements"] for row in data["groups"]) == sum(p.numel() for p in net.parameters())
    assert data["groups"][0]["param_names"][:2] == ["cls_token", "embed.weight"]
    assert data["groups"][2]["frozen"] == 1
    assert "<table" in groups._repr_html_()


def test_parameters_that_have_no_shape_yet():
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    groups = param_groups(model, 0.1, weight_decay=0.1, head="1")
    assert groups[0]["params"][0] is model[0].weight
    assert groups.to_json()["groups"][0]["elements"] == 0
    assert "trunk" in str(groups)


leaves = st.sampled_from(
    [
        lambda: nn.Linear(2, 2),
        lambda: nn.Linear(2, 2, bias=False),
        lambda: nn.LayerNorm(2),
        lambda: nn.BatchNorm1d(2),
        lambda: nn.Embedding(3, 2),
        nn.ReLU,
        Block,
    ]
).map(lambda make: make())
nets = st.recursive(
    leaves,
    lambda inner: st.lists(inner, min_size=1, max_size=4).flatmap(
        lambda parts: st.sampled_from(
            [
                nn.Sequential,
                lambda *p: nn.ModuleList(p),
                lambda *p: nn.ModuleDict({f"m{i}": q for i, q in enumerate(p)}),
            ]
        ).map(lambda make: make(*parts))
    ),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(
    inner=nets,
    draw=st.data(),
    layer_decay=st.none() | st.floats(0.1, 1.0),
    weight_decay=st.sampled_from([0.0, 0.1]),
    head=st.booleans(),
)
def test_of_any_net_each_parameter_is_in_one_group(inner, draw, layer_decay, weight_decay, head):
    model = nn.ModuleDict({"trunk": inner, "mid": nn.Linear(2, 2)} | ({"fc": nn.Linear(2, 2)} if head else {}))
    weights = [m for m in model.modules() if isinstance(m, nn.Linear)]
    first, second = draw.draw(st.sampled_from(weights)), draw.draw(st.sampled_from(weights))
    second.weight = first.weight  # tied, unless both are the same
    for parameter in model.parameters():
        parameter.requires_grad_(draw.draw(st.booleans()))
    groups = param_groups(model, 0.7, layer_decay=layer_decay, weight_decay=weight_decay)
    assert_each_once(model, groups)
    depths = groups.depths
    rate = setting(groups, "lr")
    factor = layer_decay or 1.0
    assert rate == {name: 0.7 * factor ** (depths.deepest - depths.of[name]) for name in rate}
    assert max(rate.values()) <= 0.7
    order = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    for group in groups:
        places = [order[name] for name in group["param_names"]]
        assert places == sorted(places)
    firsts = [order[group["param_names"][0]] for group in groups]
    assert firsts == sorted(firsts), "groups come in the order of the model"
    torch.optim.SGD(groups, lr=0.1)
    if any(parameter.requires_grad for parameter in model.parameters()):
        left = param_groups(model, 0.7, layer_decay=layer_decay, weight_decay=weight_decay, frozen="out")
        assert sorted(members(left)) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
        assert setting(left, "lr").items() <= rate.items()


def test_a_naive_list_holds_a_tied_tensor_twice():
    model = tied()
    naive = [{"params": list(part.parameters())} for part in model.children()]
    with pytest.raises((ValueError, Warning), match=r"some parameters appear in more than one parameter group"):
        torch.optim.SGD(naive, lr=0.1)


def test_its_repr_is_a_line_without_tensors():
    groups = param_groups(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), 0.1)
    assert repr(groups) == str(groups).splitlines()[-1]
    assert "tensor(" not in repr(groups)

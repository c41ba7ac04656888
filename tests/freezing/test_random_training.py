"""Random models, frozen in part, under random training: what is held stays equal to the bit; the naive twin drifts."""

from __future__ import annotations

import copy
import warnings

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.freezing import holds_on


class Recurrent(nn.Module):
    """A recurrent layer between others."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


# Every layer maps (N, 4, 4) to (N, 4, 4).
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.5),
}
LAYERS = {
    "linear": lambda: nn.Linear(4, 4),
    "conv": lambda: nn.Conv1d(4, 4, 3, padding=1),
    "batch norm": lambda: nn.BatchNorm1d(4),
    "cumulative batch norm": lambda: nn.BatchNorm1d(4, momentum=None, affine=False),
    "sync batch norm": lambda: nn.SyncBatchNorm(4),
    "instance norm": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm(4),
    "rms norm": lambda: nn.RMSNorm(4),
    "dropout": lambda: nn.Dropout(0.3),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True),
    "recurrent": Recurrent,
    "nested": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2)),
}
TRACKING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@st.composite
def situations(draw):
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=5))
    held = draw(st.lists(st.sampled_from(range(len(kinds))), min_size=1, max_size=len(kinds), unique=True))
    return {
        "kinds": kinds,
        "held": [str(i) for i in held],
        "level": draw(st.sampled_from(["state", "state", "stats", "grad"])),
        "lock": draw(st.sampled_from(["soft", "hard"])),
        "optimizer": draw(st.sampled_from(sorted(OPTIMIZERS))),
        "warm": draw(st.booleans()),
        "steps": draw(st.lists(steps(len(kinds)), min_size=1, max_size=5)),
        "off": draw(st.lists(st.sampled_from(range(len(kinds))), max_size=2)),
    }


def steps(layers):
    return st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["train", "eval", "train one", "none"]),
            "which": st.integers(0, layers - 1),
            "turn on": st.booleans(),
            "set to none": st.booleans(),
            "no_grad": st.booleans(),
        }
    )


def build(situation):
    torch.manual_seed(0)
    model = nn.Sequential(*(LAYERS[kind]() for kind in situation["kinds"]), nn.Linear(4, 2))
    for i in situation["off"]:  # modes and flags as someone left them
        model[i].eval()
        for parameter in model[i].parameters():
            parameter.requires_grad_(False)
    return model


def one_step(model, optimizer, step):
    if step["mode"] == "train":
        model.train()
    elif step["mode"] == "eval":
        model.eval()
    elif step["mode"] == "train one":
        model[step["which"]].train()
    if step["turn on"]:
        model[step["which"]].requires_grad_(True)
    with torch.set_grad_enabled(not step["no_grad"]):
        loss = model(torch.randn(3, 4, 4) + 1).square().mean()
        if loss.requires_grad:
            loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=step["set to none"])


def flags(model):
    return [(type(m), m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(situation=situations())
def test_held_entries_are_equal_to_the_bit(bytes_of, moved, situation):
    model = build(situation)
    optimizer = OPTIMIZERS[situation["optimizer"]](model.parameters())
    if situation["warm"]:
        one_step(model, optimizer, {"mode": "none", "turn on": False, "set to none": False, "no_grad": False})
    before_flags = flags(model)
    level = situation["level"]
    try:
        hold = fl.freeze(model, *situation["held"], level=level, lock=situation["lock"], optimizer=optimizer)
    except fl.errors.CannotFreeze:
        assert level in {"grad", "stats"}  # these layers have nothing of that kind
        assert flags(model) == before_flags
        return
    held = set(hold.paths)
    before = bytes_of(model)
    for step in situation["steps"]:
        one_step(model, optimizer, step)
        assert moved(before, bytes_of(model)) & held == set()
        # Someone has turned requires_grad on again: that is seen, and nothing else is.
        assert {row.kind for row in hold.diff().moved} <= {"requires_grad"}
    other = copy.deepcopy(model)
    for parameter in [p for path, p in model.named_parameters() if path in held]:
        parameter.requires_grad_(False)
    hold.verify()
    for found in (hold, *holds_on(other)):
        found.thaw()
    model.train()
    other.train()
    assert all(m.training for m in [*model.modules(), *other.modules()])


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(situation=situations())
def test_the_naive_twin_drifts_wherever_there_is_a_norm(bytes_of, moved, situation):
    model = build(situation)
    optimizer = OPTIMIZERS[situation["optimizer"]](model.parameters())
    tracked = {
        f"{i}.{path}".rstrip(".")
        for i in situation["held"]
        for path, m in model[int(i)].named_modules()
        if isinstance(m, TRACKING)
    }
    model.requires_grad_(True)
    for i in situation["held"]:
        model[int(i)].requires_grad_(False)
    before = bytes_of(model)
    one_step(model, optimizer, {"mode": "train", "turn on": False, "set to none": True, "no_grad": False})
    drifted = {name.rpartition(".")[0] for name in moved(before, bytes_of(model)) if "running_" in name}
    assert tracked <= drifted
    assert not {n for n in moved(before, bytes_of(model)) if n.split(".")[0] in situation["held"]} & {
        n for n, _ in model.named_parameters()
    }  # and its parameters say that nothing happened


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["0", "1", "2", "1.1", "*", "*.weight"]), st.sampled_from(["state", "stats", "grad"])
        ),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_any_holds_released_in_any_order_bring_back_exactly_what_was_there(parts, data):
    torch.manual_seed(0)
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), shared), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4), shared), Recurrent()
    )
    for module in model.modules():
        module.training = data.draw(st.booleans())
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    odd = [dict(m.__dict__) for m in model.modules()]
    before = flags(model)
    holds = []
    for selector, level in parts:
        try:
            holds.append(quietly(model, selector, level))
        except fl.errors.CannotFreeze:
            assert (selector, level) in {("0", "stats"), ("2", "stats"), ("*.weight", "stats"), ("1", "stats")}
    for i in data.draw(st.permutations(range(len(holds)))):
        holds[i].verify()
        holds[i].thaw()
    assert flags(model) == before
    assert [dict(m.__dict__) for m in model.modules()] == odd


def quietly(model, selector, level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.errors.TiedAcrossBoundary)
        return fl.freeze(model, selector, level=level)

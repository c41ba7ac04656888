"""The inventory: every state entry of a model, compared with independent walks."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from frostline.state.inventory import SCHEMA_VERSION, TENSOR_KINDS, inventory, owners


class Everything(nn.Module):
    """One of each: a root-level token, a non-persistent buffer, None, tied, shared, viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.bn_static = nn.BatchNorm2d(2, affine=False, track_running_stats=False)
        self.shared = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.25))
        self.again = self.shared
        self.embed = nn.Embedding(5, 4)
        self.decode = nn.Linear(4, 5, bias=False)
        self.decode.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("no_weight", None)
        bank = torch.zeros(8)
        self.register_buffer("whole", bank)
        self.register_buffer("left", bank[:4])
        self.register_buffer("right", bank[4:])
        self.register_buffer("scalar", torch.tensor(1.5))
        self.register_buffer("empty", torch.zeros(0, 3))


def walked(model: nn.Module) -> dict[str, Tensor]:
    """What torch's own walks say."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def test_every_parameter_and_buffer_is_the_live_object() -> None:
    model = Everything()
    tensors = inventory(model).tensors
    expected = walked(model)
    assert tensors.keys() == expected.keys()
    assert all(tensors[path] is expected[path] for path in expected)
    # The naive way, torch's default walk, leaves out every second name of a tensor.
    assert set(dict(model.named_parameters())) < set(inventory(model).of("parameter"))
    assert not {"nothing", "no_weight", "conv.bias"} & set(tensors)


def test_persistent_is_what_a_state_dict_carries() -> None:
    model = Everything()
    entries = inventory(model)
    assert {p for p, e in entries.items() if e.persistent} == set(model.state_dict())
    assert {p for p, e in entries.items() if e.is_tensor and not e.persistent} == {"positions"}


def test_modes_flags_and_kinds() -> None:
    model = Everything()
    model.bn.eval()
    model.conv.weight.requires_grad_(False)
    entries = inventory(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    assert {p: e.value for p, e in entries.of("mode").items()} == {
        f"{p}.training" if p else "training": m.training for p, m in modules.items()
    }
    assert {p: e.value for p, e in entries.of("requires_grad").items()} == {
        f"{p}.requires_grad": t.requires_grad for p, t in model.named_parameters(remove_duplicate=False)
    }
    assert {e.kind for e in entries.values()} == {"parameter", "buffer", "mode", "requires_grad", "config"}
    for path, entry in entries.items():
        assert entry.path == path
        assert entry.module_type == type(modules[entry.module]).__name__
        assert entry.path.startswith(entry.module)
        assert entry.is_tensor == (entry.kind in TENSOR_KINDS)
        assert entry.numel == (entry.value.numel() if entry.is_tensor else 0)
        assert entry.nbytes == (entry.value.nbytes if entry.is_tensor else 0)


def test_the_configuration_that_a_checkpoint_omits() -> None:
    entries = inventory(Everything()).of("config")
    assert {path: entry.value for path, entry in entries.items()} == {
        "bn.eps": 1e-5,
        "bn.momentum": 0.1,
        "bn.affine": True,
        "bn.track_running_stats": True,
        "bn_static.eps": 1e-5,
        "bn_static.momentum": 0.1,
        "bn_static.affine": False,
        "bn_static.track_running_stats": False,
        "shared.1.p": 0.25,
        "again.1.p": 0.25,
    }


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Dropout(0), {"p": 0}),
        (nn.Dropout(1), {"p": 1}),
        (nn.Dropout2d(0.3), {"p": 0.3}),
        (nn.AlphaDropout(0.3), {"p": 0.3}),
        (
            nn.BatchNorm1d(1, momentum=None),
            {"eps": 1e-5, "momentum": None, "affine": True, "track_running_stats": True},
        ),
        (nn.LayerNorm(2, eps=1e-6), {"eps": 1e-6, "elementwise_affine": True}),
        (nn.GroupNorm(1, 2), {"eps": 1e-5, "affine": True, "num_groups": 1}),
        (nn.LSTM(1, 1), {"dropout": 0.0}),
        (nn.GRU(1, 1, num_layers=2, dropout=0.5), {"dropout": 0.5}),
        (nn.Linear(1, 1), {}),
        (nn.PairwiseDistance(p=2.0), {}),  # a `p` that has nothing to do with dropping
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_configuration_by_layer(module: nn.Module, expected: dict[str, object]) -> None:
    assert {path: entry.value for path, entry in inventory(module).of("config").items()} == expected


def test_drop_paths_of_timm_and_torchvision() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these two say while they are imported is not ours
        from frostline.compat import import_torchvision

        stochastic_depth = import_torchvision("ops").StochasticDepth
        drop_path = pytest.importorskip("timm.layers").DropPath
    model = nn.Sequential(stochastic_depth(0.2, "row"), drop_path(0.3), drop_path(0))
    entries = inventory(model).of("config")
    assert {path: (e.value, e.role) for path, e in entries.items()} == {
        "0.p": (0.2, "dropout.p"),
        "1.drop_prob": (0.3, "dropout.drop_prob"),
        "2.drop_prob": (0, "dropout.drop_prob"),
    }


def test_a_model_that_is_only_called_after_stochastic_depth() -> None:
    class StochasticDepthNet(nn.Sequential):
        pass

    assert list(inventory(StochasticDepthNet(nn.Linear(1, 1))).of("config")) == []


def test_the_order_is_that_of_the_model() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 1)))
    assert list(inventory(model)) == [
        "training",
        "0.weight",
        "0.weight.requires_grad",
        "0.bias",
        "0.bias.requires_grad",
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
        "0.training",
        "0.eps",
        "0.momentum",
        "0.affine",
        "0.track_running_stats",
        "1.training",
        "1.0.weight",
        "1.0.weight.requires_grad",
        "1.0.bias",
        "1.0.bias.requires_grad",
        "1.0.training",
    ]
    modules = [e.module for e in inventory(Everything()).values()]
    assert list(dict.fromkeys(modules)) == [p for p, _ in Everything().named_modules(remove_duplicate=False)]


def test_tied_shared_and_viewed_tensors_name_each_other() -> None:
    entries = inventory(Everything())
    assert {p: e.aliases for p, e in entries.items() if e.aliases} == {
        "shared.0.weight": ("again.0.weight",),
        "again.0.weight": ("shared.0.weight",),
        "shared.0.bias": ("again.0.bias",),
        "again.0.bias": ("shared.0.bias",),
        "embed.weight": ("decode.weight",),
        "decode.weight": ("embed.weight",),
        "whole": ("left", "right"),
        "left": ("whole",),
        "right": ("whole",),
    }


def test_a_transposed_view_is_the_same_memory() -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(3, 2))
    model.register_buffer("b", model.a.detach().t())
    model.register_buffer("c", torch.from_numpy(model.a.detach().numpy()))
    entries = inventory(model)
    assert [entries[p].aliases for p in "abc"] == [("b", "c"), ("a", "c"), ("a", "b")]


def test_owners_name_every_place_of_a_parameter() -> None:
    model = Everything()
    found = owners(nn.DataParallel(model))
    assert [path for path, _, _ in found[id(model.embed.weight)]] == ["embed.weight", "decode.weight"]
    path, owner, name = found[id(model.cls_token)][0]
    assert (path, owner, name) == ("cls_token", model, "cls_token")
    assert sum(map(len, found.values())) == len(list(model.named_parameters(remove_duplicate=False)))


def test_tensors_of_parametrizations_are_there_under_their_own_names() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(2, 2)), parametrizations.spectral_norm(nn.Linear(2, 2))
    )
    entries = inventory(model)
    assert entries.tensors.keys() == walked(model).keys()
    assert {"1.parametrizations.weight.0._u", "1.parametrizations.weight.0._v"} <= set(entries.of("buffer"))
    # The mode of the module that iterates is an entry of its own: it is what stops the iteration.
    assert "1.parametrizations.weight.0.training" in entries
    # Computed weights are no state.
    assert "0.weight" not in entries


def test_the_older_reparametrizations() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)), nn.utils.spectral_norm(nn.Linear(2, 2)))
    assert set(inventory(model).tensors) == {
        "0.weight_g",
        "0.weight_v",
        "0.bias",
        "1.weight_orig",
        "1.weight_u",
        "1.weight_v",
        "1.bias",
    }


def test_lazy_modules_are_listed_without_shapes() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    entries = inventory(model)
    row = entries["0.weight"].to_dict()
    assert (row["shape"], row["dtype"], row["requires_grad"]) == (None, "float32", True)
    assert (entries["0.weight"].numel, entries["0.weight"].nbytes) == (0, 0)
    assert entries["1.running_mean"].role == "norm.mean"
    assert entries["1.running_mean"].aliases == ()
    assert "lazy float32" in str(entries)
    json.dumps(entries.to_json(), allow_nan=False)
    model(torch.ones(2, 4))
    assert inventory(model)["0.weight"].to_dict()["shape"] == [3, 4]


def test_meta_and_sparse_tensors_are_listed_too() -> None:
    model = nn.Linear(2, 2, device="meta")
    model.register_buffer("mask", torch.eye(2).to_sparse())
    entries = inventory(model)
    assert entries["weight"].to_dict()["device"] == "meta"
    assert all(e.aliases == () for e in entries.values())


class WithExtra(nn.Linear):
    def __init__(self, extra: object) -> None:
        super().__init__(1, 1)
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


def test_extra_state_is_an_entry_and_is_described_by_its_type() -> None:
    entry = inventory(nn.Sequential(WithExtra({"scale": torch.ones(1)})))["0.extra_state"]
    assert (entry.kind, entry.role, entry.persistent, entry.module_type) == ("extra", "extra", True, "WithExtra")
    assert entry.to_dict()["value"] == "a dict"
    assert "extra_state" not in inventory(nn.Linear(1, 1))


@pytest.mark.parametrize("extra", [None, 3, "text"])
def test_plain_extra_states_are_written_out(extra: object) -> None:
    assert inventory(WithExtra(extra))["extra_state"].to_dict()["value"] == extra


def test_buffers_of_observers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import FakeQuantize

        model = nn.Sequential(FakeQuantize())
    assert inventory(model).tensors.keys() == walked(model).keys()
    assert inventory(model)["0.observer_enabled"].role == "quant.switch"


@pytest.mark.skipif(not hasattr(nn, "Buffer"), reason="torch.nn.Buffer came with torch 2.5")
def test_buffers_made_by_assignment() -> None:
    model = nn.Module()
    model.kept = nn.Buffer(torch.zeros(2))
    model.lost = nn.Buffer(torch.zeros(2), persistent=False)
    entries = inventory(model)
    assert {p: (e.kind, e.persistent) for p, e in entries.items() if e.is_tensor} == {
        "kept": ("buffer", True),
        "lost": ("buffer", False),
    }


def test_containers_of_parameters_and_rnns() -> None:
    model = nn.ModuleDict(
        {
            "list": nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]),
            "dict": nn.ParameterDict({"a b": nn.Parameter(torch.zeros(1))}),
            "rnn": nn.LSTM(2, 3, num_layers=2, bidirectional=True),
        }
    )
    entries = inventory(model)
    assert entries.tensors.keys() == walked(model).keys()
    assert "dict.a b" in entries
    # Flat weights of an RNN are one storage on CUDA and several here; in no case do they overlap.
    assert all(e.aliases == () for e in entries.values())


def test_wrappers_are_looked_through() -> None:
    model = Everything()
    plain = list(inventory(model))
    assert list(inventory(nn.DataParallel(model))) == plain
    assert list(inventory(torch.compile(model, backend="eager"))) == plain


def test_it_only_reads() -> None:
    model = Everything()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = {p: (id(t), t._version, t.requires_grad, t.detach().clone()) for p, t in walked(model).items()}
    state = torch.get_rng_state()
    str(inventory(model)), inventory(model)._repr_html_(), inventory(model).to_json()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.conv.weight.grad is not None
    for path, tensor in walked(model).items():
        same = before[path]
        assert (id(tensor), tensor._version, tensor.requires_grad) == same[:3]
        assert np.array_equal(tensor.detach().numpy(), same[3].numpy())


def test_json_round_trip() -> None:
    model = Everything()
    data = inventory(model).to_json()
    back = json.loads(json.dumps(data, allow_nan=False))
    assert back == data
    assert back["schema_version"] == SCHEMA_VERSION == 1
    rows = {row["path"]: row for row in back["entries"]}
    assert list(rows) == list(inventory(model))
    assert rows["bn.running_mean"] == {
        "path": "bn.running_mean",
        "kind": "buffer",
        "role": "norm.mean",
        "module": "bn",
        "module_type": "BatchNorm2d",
        "persistent": True,
        "aliases": [],
        "dtype": "float32",
        "shape": [2],
        "device": "cpu",
        "requires_grad": False,
    }
    assert rows["bn.momentum"]["value"] == 0.1
    assert rows["training"]["value"] is True
    # Two models of one structure describe themselves alike: reports can be compared.
    assert inventory(copy.deepcopy(model)).to_json() == data


PRINTED = """\
path                    kind           role                      value         note
──────────────────────  ─────────────  ────────────────────────  ────────────  ─────────────────
training                mode           mode                      train
0.weight                parameter      weight                    1x2 float32   = 0.tied
0.weight.requires_grad  requires_grad  requires_grad             True
0.bias                  parameter      bias                      1 float32
0.bias.requires_grad    requires_grad  requires_grad             True
0.tied                  parameter      parameter                 1x2 float32   = 0.weight
0.tied.requires_grad    requires_grad  requires_grad             True
0.training              mode           mode                      train
1.running_mean          buffer         norm.mean                 1 float32
1.running_var           buffer         norm.var                  1 float32
1.num_batches_tracked   buffer         norm.count                scalar int64
1.cache                 buffer         buffer                    scalar int64  not in state_dict
1.training              mode           mode                      eval
1.eps                   config         norm.eps                  1e-05
1.momentum              config         norm.momentum             0.1
1.affine                config         norm.affine               False
1.track_running_stats   config         norm.track_running_stats  True
3 parameters (3 elements), 4 buffers, 3 modules"""


def test_it_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, affine=False))
    model[1].eval()
    model[1].register_buffer("cache", torch.tensor(0), persistent=False)
    model[0].register_parameter("tied", model[0].weight)
    assert str(inventory(model)) == PRINTED


def test_it_prints_in_a_notebook_and_escapes() -> None:
    model = nn.Module()
    model.register_buffer("<script>alert(1)</script>", torch.zeros(1))
    text = inventory(model)._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<caption>0 parameters (0 elements), 1 buffers, 1 modules</caption>" in text
    assert text.count("<tr>") == 3

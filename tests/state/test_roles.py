"""Roles: what an entry is for, told from its owner and its name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from frostline.state.inventory import inventory
from frostline.state.roles import is_norm, is_observer, role_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing torch.ao deprecates itself
    from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver


def roles(model: nn.Module, *kinds: str) -> dict[str, str]:
    return {path: entry.role for path, entry in inventory(model).of(*kinds or ("parameter", "buffer")).items()}


STATISTICS = {"running_mean": "norm.mean", "running_var": "norm.var", "num_batches_tracked": "norm.count"}
AFFINE = {"weight": "norm.weight", "bias": "norm.bias"}


class HandWrittenFrozenBN(nn.Module):
    """Detectron2, torchvision and DETR keep everything in buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(2))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.BatchNorm1d(2), AFFINE | STATISTICS),
        (nn.BatchNorm2d(2), AFFINE | STATISTICS),
        (nn.BatchNorm3d(2), AFFINE | STATISTICS),
        (nn.SyncBatchNorm(2), AFFINE | STATISTICS),
        (nn.LazyBatchNorm1d(), AFFINE | STATISTICS),
        (nn.BatchNorm2d(2, affine=False), STATISTICS),
        (nn.BatchNorm2d(2, track_running_stats=False), AFFINE),
        (nn.InstanceNorm2d(2, affine=True, track_running_stats=True), AFFINE | STATISTICS),
        (nn.InstanceNorm2d(2), {}),
        (nn.LayerNorm(2), AFFINE),
        (nn.GroupNorm(1, 2), AFFINE),
        (nn.RMSNorm(2), {"weight": "norm.weight"}),
        (HandWrittenFrozenBN(), AFFINE | {k: STATISTICS[k] for k in ("running_mean", "running_var")}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_normalization(module: nn.Module, expected: dict[str, str]) -> None:
    assert is_norm(module)
    assert roles(module) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 2), {"weight": "weight", "bias": "bias"}),
        (nn.Conv2d(1, 1, 1), {"weight": "weight", "bias": "bias"}),
        (nn.Embedding(2, 2), {"weight": "embedding"}),
        (nn.EmbeddingBag(2, 2), {"weight": "embedding"}),
        (nn.PReLU(), {"weight": "weight"}),
        (
            nn.LSTM(2, 3, proj_size=2),
            {
                "weight_ih_l0": "rnn.weight",
                "weight_hh_l0": "rnn.weight",
                "bias_ih_l0": "rnn.bias",
                "bias_hh_l0": "rnn.bias",
                "weight_hr_l0": "rnn.weight",
            },
        ),
        (
            nn.MultiheadAttention(4, 2, add_bias_kv=True),
            {
                "in_proj_weight": "weight",
                "in_proj_bias": "bias",
                # Not a half of weight_norm, although it ends like one.
                "bias_k": "parameter",
                "bias_v": "parameter",
                "out_proj.weight": "weight",
                "out_proj.bias": "bias",
            },
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_layers(module: nn.Module, expected: dict[str, str]) -> None:
    assert not is_norm(module)
    assert not is_observer(module)
    assert roles(module) == expected


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(2, 2))


def old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            old_weight_norm(),
            {"bias": "bias", "weight_g": "parametrization.original", "weight_v": "parametrization.original"},
        ),
        (
            parametrizations.weight_norm(nn.Linear(2, 2)),
            {
                "bias": "bias",
                "parametrizations.weight.original0": "parametrization.original",
                "parametrizations.weight.original1": "parametrization.original",
            },
        ),
        (
            old_spectral_norm(),
            {
                "bias": "bias",
                "weight_orig": "parametrization.original",
                "weight_u": "spectral.u",
                "weight_v": "spectral.v",
            },
        ),
        (
            parametrizations.spectral_norm(nn.Linear(2, 2)),
            {
                "bias": "bias",
                "parametrizations.weight.original": "parametrization.original",
                "parametrizations.weight.0._u": "spectral.u",
                "parametrizations.weight.0._v": "spectral.v",
            },
        ),
        (
            prune.random_unstructured(nn.Linear(2, 2), "weight", 0.5),
            {"bias": "bias", "weight_orig": "parametrization.original", "weight_mask": "buffer"},
        ),
    ],
    ids=["weight_norm", "weight_norm_new", "spectral_norm", "spectral_norm_new", "prune"],
)
def test_reparametrized_weights(module: nn.Module, expected: dict[str, str]) -> None:
    assert roles(module) == expected


def test_a_lone_name_that_looks_like_a_half_is_no_half() -> None:
    module = nn.Module()
    module.w_v = nn.Parameter(torch.zeros(1))
    module.register_buffer("w_u", torch.zeros(1))
    assert roles(module) == {"w_v": "parameter", "w_u": "buffer"}
    module.w_g = nn.Parameter(torch.zeros(1))
    assert roles(module)["w_v"] == "parametrization.original"


@pytest.mark.parametrize("observer", [MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver])
def test_observers(observer: type[nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = observer()
    assert is_observer(module)
    found = roles(module)
    assert found["min_val"] == found["max_val"] == "quant.range"
    assert found.get("histogram", "quant.range") == "quant.range"
    assert found["eps"] == "buffer"


def test_fake_quantizers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = FakeQuantize()
    found = roles(module)
    assert {name: found[name] for name in ("observer_enabled", "fake_quant_enabled", "scale", "zero_point")} == {
        "observer_enabled": "quant.switch",
        "fake_quant_enabled": "quant.switch",
        "scale": "quant.scale",
        "zero_point": "quant.zero_point",
    }
    assert found["activation_post_process.min_val"] == "quant.range"


def test_the_names_of_quantizers_mean_nothing_elsewhere() -> None:
    module = nn.Module()
    for name in ("scale", "zero_point", "min_val"):
        module.register_buffer(name, torch.zeros(1))
    assert set(roles(module).values()) == {"buffer"}


def test_flags_and_configuration() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.Dropout(0.1), nn.GRU(1, 1))
    found = roles(model, "mode", "requires_grad", "config")
    assert {role for path, role in found.items() if path.endswith("training")} == {"mode"}
    assert {role for path, role in found.items() if path.endswith("requires_grad")} == {"requires_grad"}
    assert {path: role for path, role in found.items() if role not in {"mode", "requires_grad"}} == {
        "0.eps": "norm.eps",
        "0.momentum": "norm.momentum",
        "0.affine": "norm.affine",
        "0.track_running_stats": "norm.track_running_stats",
        "1.eps": "norm.eps",
        "1.affine": "norm.affine",
        "1.num_groups": "norm.num_groups",
        "2.eps": "norm.eps",
        "2.elementwise_affine": "norm.elementwise_affine",
        "3.p": "dropout.p",
        "4.dropout": "rnn.dropout",
    }


def test_role_of_an_extra_state() -> None:
    assert role_of(nn.Linear(1, 1), "extra_state", kind="extra") == "extra"

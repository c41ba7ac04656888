"""What users of other libraries reported, where values were at fault: lost, not written, negative, of other classes.

Each test rebuilds the situation, shows what the usual way does there, and then what a plan says and does. Reports that
are about names are in ``test_user_reports_names.py``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.checkpoint import ClassRows, LoadPlan, plan_load
from frostline.compat import import_torchvision
from frostline.errors import CheckpointError
from frostline.state.digest import digest

COUNTERS = "*.num_batches_tracked"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Net(nn.Module):
    """9 tensors: a convolution, a norm, a classifier."""

    def __init__(self, classes: int = 4, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn: Any = norm if norm is not None else nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


def filled(model: nn.Module, seed: int) -> Any:
    """The same model with values that no other seed and no initialization gives; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else seed)
    return model.eval()


def trained(seed: int = 1) -> dict[str, Tensor]:
    return dict(filled(Net(), seed).state_dict())


def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def holds(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    live = model.state_dict()
    return all(torch.equal(live[name], value) for name, value in state.items())


def without(state: Mapping[str, Tensor], *leaves: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.rpartition(".")[2] not in leaves}


def strict_false(model: nn.Module, state: Mapping[str, Any]) -> None:
    """The usual way, whose result nobody looks at."""
    model.load_state_dict(dict(state), strict=False)


def refusal(plan: LoadPlan) -> str:
    """The message of a refusal that left every bit of the model alone."""
    before = fl.snapshot(plan.model)
    with pytest.raises(CheckpointError) as caught:
        plan.apply()
    assert not before.diff(plan.model)
    return str(caught.value)


def test_a_mismatch_of_shape_is_an_error_that_changes_nothing():
    """6, pytorch#173160, #173488: a size mismatch raises even when non-strict; asks for ``allow_partial``."""
    model = filled(Net(classes=7), 9)
    with pytest.raises(RuntimeError, match="size mismatch"):
        strict_false(model, trained())
    assert torch.equal(model.conv.weight, trained()["conv.weight"])  # and it is half loaded
    model = filled(Net(classes=7), 9)
    said = refusal(plan_load(model, trained()))
    assert "! fc.{weight,bias} (2) <- fc.{weight,bias} (2): (4, 4) in the checkpoint, (7, 4) in the model" in said
    assert "fix: if that is meant: keep='fc', drop='fc'" in said
    report = plan_load(model, trained(), keep="fc", drop="fc").apply()
    assert {row.target or row.source: row.verdict for row in report.rows if "fc" in (row.target or "")} == {
        "fc.weight": "kept-init",
        "fc.bias": "kept-init",
    }
    assert holds(model, {name: value for name, value in trained().items() if not name.startswith("fc")})
    assert holds(model, {n: v for n, v in filled(Net(classes=7), 9).state_dict().items() if n.startswith("fc")})


# Shards and places that a state dict does not reach


@pytest.mark.parametrize("name", ["_flat_param", "layers.0._fsdp_wrapped_module._flat_param"])
def test_flat_shards_are_refused(name: str):
    """16, pytorch#117421: an FSDP load "succeeds", ``_flat_param`` is unexpected, the output is unchanged."""
    file = {name: torch.rand(100)}
    model = filled(Net(), 9)
    strict_false(model, file)
    assert holds(model, trained(9))
    with pytest.raises(CheckpointError) as caught:
        plan_load(model, file)
    assert f"holds flat shards of FSDP, which are no tensors of a model: {name}" in str(caught.value)
    assert "fix: save it with StateDictType.FULL_STATE_DICT" in str(caught.value)


class FromOneBuffer(nn.Module):
    """A linear layer whose parameters are views of one buffer, which is what it calculates with."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = (torch.zeros(12),)  # in a tuple, where no module looks
        self.weight = nn.Parameter(self.memory[0].view(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.memory[0].view(3, 4).T


def test_values_are_written_where_the_model_reads_them():
    """17, Megatron-LM#6203: ``assign=True`` after sharding is ignored; optimizers lose their parameters too."""
    file = {"weight": torch.rand(3, 4)}
    x = torch.rand(2, 4)
    model = FromOneBuffer()
    model.load_state_dict(file, assign=True)
    assert torch.equal(model.weight, file["weight"])  # what a check of names and values sees
    assert not model(x).any()
    model = FromOneBuffer()
    weight = model.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    assert plan_load(model, file).apply().coverage == 1
    assert torch.equal(model(x), x @ file["weight"].T)
    assert model.weight is weight is optimizer.param_groups[0]["params"][0]
    # A model that is not there yet takes no values.
    with torch.device("meta"):
        empty = nn.Linear(4, 3)
    assert "on the meta device, which holds no values" in str(plan_load(empty, nn.Linear(4, 3)))
    assert not plan_load(empty, nn.Linear(4, 3)).complete


def test_a_pretrained_backbone_is_proven_by_value():
    """25, mmsegmentation#695, #966: ``init_cfg`` was ignored, and the backbone stayed random."""
    model = nn.ModuleDict({"backbone": filled(Net(), 9), "head": nn.Linear(4, 2)})
    file = trained()
    strict_false(model, file)
    assert holds(model["backbone"], trained(9))
    assert "fix: if that is meant: keep='head'" in refusal(plan_load(model, file))
    before = fl.snapshot(model)
    report = plan_load(model, file, keep="head").apply()
    loaded = [row for row in report.rows if row.verdict == "renamed"]
    assert len(loaded) == 9
    for row in loaded:
        assert row.digest == digest(file[str(row.source)]) == digest(model.state_dict()[str(row.target)])
    assert sorted(row.path for row in before.diff(model).moved) == sorted(str(row.target) for row in loaded)


# Statistics and counters


def test_counters_that_old_files_lack_are_set_to_0_and_that_is_said():
    """18, pytorch#8430, MGA#4, TorchSeg#45: missing ``num_batches_tracked`` (torch 0.3)."""
    file = without(trained(), "num_batches_tracked")
    model = filled(Net(), 9)
    plan = plan_load(model, file)
    assert [row.target for row in plan.rows if row.verdict == "filled:0"] == ["bn.num_batches_tracked"]
    report = plan.apply()
    assert report.coverage == 1
    assert "num_batches_tracked absent x1 -> set to 0" in report.summary
    assert holds(model, file | {"bn.num_batches_tracked": torch.tensor(0)})
    assert not report.notes
    # With momentum=None the first batch then overwrites the statistics. The usual way says nothing of it.
    naive = Net(norm=nn.BatchNorm2d(4, momentum=None))
    naive.load_state_dict(file)
    model = Net(norm=nn.BatchNorm2d(4, momentum=None))
    (note,) = plan_load(model, file).apply().notes
    assert "count from 0: the first batch in train mode overwrites their statistics (bn ...)" in note
    for loaded in (naive, model):
        assert torch.equal(loaded.bn.running_mean, file["bn.running_mean"])
        batch = loaded.conv(images())
        loaded.train()(images())
        torch.testing.assert_close(loaded.bn.running_mean, batch.mean((0, 2, 3)))


class OldNorm(nn.Module):
    """A batch norm as of torch 0.3: it counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))


def test_counters_that_an_old_model_lacks_are_dropped_on_purpose():
    """19, guided-stereo#2, DA_Detection#33, hand-graph-cnn#4: unexpected ``num_batches_tracked``."""
    file = trained()
    model = filled(Net(norm=OldNorm()), 9)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(file)
    # The usual cure hides whatever else is wrong.
    model = filled(Net(norm=OldNorm()), 9)
    strict_false(model, {name.replace("fc", "head"): value for name, value in file.items()})
    assert torch.equal(model.fc.weight, trained(9)["fc.weight"])
    model = filled(Net(norm=OldNorm()), 9)
    assert "fix: if that is meant: drop='bn.num_batches_tracked'" in refusal(plan_load(model, file))
    assert plan_load(model, file, drop="bn.num_batches_tracked").apply().coverage == 1
    assert holds(model, without(file, "num_batches_tracked"))


def test_a_file_of_parameters_alone_lacks_statistics():
    """20, torch/nn#1165: saved only parameters, and the running statistics were lost."""
    source = filled(Net(), 1)
    file = {name: parameter.detach() for name, parameter in source.named_parameters()}
    model = Net().eval()
    strict_false(model, file)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert not torch.allclose(model(images()), source(images()))
    said = refusal(plan_load(Net(), file))
    assert "- bn.{running_mean,running_var,num_batches_tracked} (3)" in said
    keep = [f"bn.{leaf}" for leaf in STATISTICS]
    assert f"fix: if that is meant: keep={keep}" in said
    report = plan_load(model, file, keep=keep).apply()
    assert report.norms == (0, 1)
    assert "0/1 BatchNorm with statistics" in report.summary
    assert holds(model, file)


def test_an_average_of_weights_without_buffers_lacks_statistics():
    """21, timm#245, ignite#2592: an EMA copy without buffers, and its accuracy collapses."""
    ema = without(trained(2), *STATISTICS)
    file = {"state_dict": trained(1), "state_dict_ema": ema, "epoch": 3}
    naive = Net().eval()
    strict_false(naive, ema)
    assert not torch.allclose(naive(images()), filled(Net(), 2)(images()))
    model = Net()
    with pytest.raises(CheckpointError, match="take='state_dict_ema' or take='state_dict'"):
        plan_load(model, file)
    said = refusal(plan_load(model, file, take="state_dict_ema"))
    assert "- bn.{running_mean,running_var,num_batches_tracked} (3)" in said
    # The statistics of the other copy, and then the averages, both said.
    assert "container 'state_dict'" in plan_load(model, file, take="state_dict").apply().summary
    keep = [f"bn.{leaf}" for leaf in STATISTICS]
    assert "container 'state_dict_ema'" in plan_load(model, file, take="state_dict_ema", keep=keep).apply().summary
    assert holds(model, trained(1) | ema)


def test_a_negative_variance_is_refused():
    """22, detectron2#2413: a version shim subtracts eps once more; variances below 0, and NaN at the output."""
    file = trained()
    file["bn.running_var"] = torch.tensor([0.0, 0.5, 1e-6, 1.0]) - 1e-5
    naive = Net(norm=nn.BatchNorm2d(4, eps=0.0)).eval()
    strict_false(naive, file)
    assert naive(images()).isnan().any()
    model = Net(norm=nn.BatchNorm2d(4, eps=0.0)).eval()
    said = refusal(plan_load(model, file))
    assert "suspect-values: 1" in said
    assert "bn.running_var -> bn.running_var: 2 of 4 variances are negative, the least -1e-05" in said
    assert "fix: another checkpoint; if they are meant, accept_suspect='bn.running_var'" in said
    assert plan_load(model, file, accept_suspect="bn.running_var").apply().coverage == 1
    assert holds(model, file)


# What a state dict does not carry


def frozen_norm(**options: float) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        from torchvision.ops import FrozenBatchNorm2d
    return FrozenBatchNorm2d(4, **options)


def test_another_eps_is_said(tmp_path: Path):
    """23, vision#2169, pytorch#43614: FrozenBatchNorm with eps 0 in place of BatchNorm with 1e-5."""
    source = filled(Net(), 1)
    source.bn.running_var.fill_(1e-6)
    model = Net(norm=frozen_norm(eps=0.0)).eval()
    model.load_state_dict(source.state_dict())  # fits, without a word
    assert not torch.allclose(model(images()), source(images()))
    expected = [
        "eps is 1e-05 in the checkpoint and 0.0 in the model, in 1 layers (bn ...)",
        "type is BatchNorm2d in the checkpoint and FrozenBatchNorm2d in the model, in 1 layers (bn ...)",
    ]
    report = plan_load(model, source, drop=COUNTERS).apply()
    assert list(report.notes) == expected
    assert holds(model, without(source.state_dict(), "num_batches_tracked"))
    # A file of ours carries it.
    plan_load(filled(Net(), 9), source).write(tmp_path / "net.safetensors")
    assert list(plan_load(model, tmp_path / "net.safetensors", drop=COUNTERS).notes) == expected
    assert not plan_load(model, dict(source.state_dict()), drop=COUNTERS).notes  # a bare state dict does not
    assert not plan_load(Net(), source).notes


class BiasFreeNorm(nn.BatchNorm2d):
    """Divides by the deviation and subtracts nothing."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        nothing = torch.zeros_like(self.weight)
        return nn.functional.batch_norm(input, nothing, self.running_var, self.weight, eps=self.eps)


def test_another_type_of_norm_is_said():
    """24, bias_free_denoising#3: sync-BN conversion replaced a norm of the user's own: 37 dB became 25 dB."""
    source = filled(Net(norm=BiasFreeNorm(4)), 1)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(filled(Net(norm=BiasFreeNorm(4)), 9))).eval()
    model.load_state_dict(source.state_dict())
    assert not torch.allclose(model(images()), source(images()))
    report = plan_load(model, source).apply()
    assert report.notes == (
        "type is BiasFreeNorm in the checkpoint and SyncBatchNorm in the model, in 1 layers (bn ...)",
    )
    assert not plan_load(copy.deepcopy(source), source).notes


# Rows and names


def test_rows_of_a_head_go_by_the_names_of_classes():
    """33, lightly-train#982, #985, detectron2#2063, #1808, few-shot-detection#38: person warm-starts polyp."""
    old, new = ["person", "bicycle", "car", "dog"], ["polyp", "car", "ulcer", "person"]
    file = trained()
    naive = filled(Net(), 9)
    naive.load_state_dict(file)
    assert torch.equal(naive.fc.weight[new.index("polyp")], file["fc.weight"][old.index("person")])
    model = filled(Net(), 9)
    own = model.fc.weight.detach().clone()
    plan = plan_load(model, file, adapt={"fc": ClassRows(old, new)})
    assert [row.verdict for row in plan.rows if row.target == "fc.weight"] == ["expanded:2 of 4 rows"]
    plan.apply()
    assert torch.equal(model.fc.weight[new.index("car")], file["fc.weight"][old.index("car")])
    assert torch.equal(model.fc.weight[new.index("person")], file["fc.weight"][old.index("person")])
    assert torch.equal(model.fc.bias[[1, 3]], file["fc.bias"][[2, 0]])
    assert torch.equal(model.fc.weight[[0, 2]], own[[0, 2]])
    # Never by count: more classes are a mismatch, and no class in common is an error.
    assert "(4, 4) in the checkpoint, (6, 4) in the model" in refusal(plan_load(Net(classes=6), file))
    with pytest.raises(CheckpointError, match="the two sides have no class in common"):
        ClassRows(old, ["polyp", "ulcer", "bleeding"])
    kept = filled(Net(), 9)
    plan_load(kept, file, keep="fc").apply()
    assert torch.equal(kept.fc.weight, own)


class Decoder(nn.Module):
    """An embedding that is the head as well, and a stack of layers."""

    def __init__(self, depth: int, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.head = nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_a_stack_of_another_depth_is_refused_both_ways():
    """34, pytorch#148252, torchtitan#4010, orbax#2972: 12 layers load into 16 in part, without a word."""
    deep, shallow = (filled(Decoder(depth), depth) for depth in (16, 12))
    naive = filled(Decoder(16), 9)
    strict_false(naive, shallow.state_dict())
    assert holds(naive.layers[11], shallow.layers[11].state_dict())
    assert holds(naive.layers[12], filled(Decoder(16), 9).layers[12].state_dict())
    more = ["layers.12", "layers.13", "layers.14", "layers.15"]
    model = filled(Decoder(16), 9)
    said = refusal(plan_load(model, shallow))
    assert "- layers.[12-15].{weight,bias} (8)" in said
    assert f"fix: if that is meant: keep={more}" in said
    assert plan_load(model, shallow, keep=more).apply().coverage == 26 / 34
    assert holds(model, shallow.state_dict())
    model = filled(Decoder(12), 9)
    said = refusal(plan_load(model, deep))
    assert "+ layers.[12-15].{weight,bias} (8)" in said
    assert f"fix: if that is meant: drop={more}" in said
    assert plan_load(model, deep, drop=more).apply().coverage == 1
    assert holds(model.layers, {k: v for k, v in deep.layers.state_dict().items() if int(k.split(".")[0]) < 12})


def test_tied_names_are_one_tensor():
    """34, safetensors#202, accelerate PR#2875: shared tensors, of which a file has one name or two values."""
    source = filled(Decoder(2), 1)
    state = dict(source.state_dict())
    # One of the two names is enough.
    for there, left_out in (("embed.weight", "head.weight"), ("head.weight", "embed.weight")):
        file = {name: value for name, value in state.items() if name != left_out}
        model = filled(Decoder(2), 9)
        plan = plan_load(model, file)
        assert [row.why for row in plan.rows if row.target == left_out] == [f"the same tensor as {there}"]
        assert plan.apply().coverage == 1
        assert holds(model, state)
        assert model.head.weight is model.embed.weight
    # Two values for one tensor: the last one would win.
    file = dict(filled(Decoder(2, tied=False), 1).state_dict())
    assert not torch.equal(file["embed.weight"], file["head.weight"])
    naive = Decoder(2)
    naive.load_state_dict(file)
    assert not torch.equal(naive.embed.weight, file["embed.weight"])
    model = filled(Decoder(2), 9)
    said = refusal(plan_load(model, file))
    assert "! head.weight (6, 4) <- head.weight: in the model the same tensor as embed.weight" in said
    assert "fix: untie the tensors in the model, or drop= one of the two" in said
    plan_load(model, file, drop="head.weight").apply()
    assert torch.equal(model.head.weight, file["embed.weight"])
    # A model that ties nothing needs both.
    file = {name: value for name, value in state.items() if name != "head.weight"}
    assert "- head.weight (6, 4)" in refusal(plan_load(Decoder(2, tied=False), file))

"""Which writes the dispatch mode sees: the table of ways in which torch writes, and of operators that hide it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.audit.places import NOWHERE
from frostline.audit.tracing import DrawTrace, WriteTrace


def traced(tensors, write):
    mode = WriteTrace(tensors, in_optimizer=lambda: False, forward_place=lambda: NOWHERE)
    with mode:
        write()
    return {(found.path, found.op) for found in mode.found}, mode.found


def buffers(module):
    return dict(module.named_buffers()) | dict(module.named_parameters())


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("grad", [True, False])
def test_running_statistics_are_seen_although_no_schema_and_no_version_says_so(momentum, grad):
    norm = nn.BatchNorm2d(2, momentum=momentum)
    versions = norm.running_mean._version, norm.running_var._version
    with torch.set_grad_enabled(grad):
        found, _ = traced(buffers(norm), lambda: norm(torch.randn(4, 2, 3, 3)))
    assert ("running_mean", "aten.native_batch_norm") in found
    assert ("running_var", "aten.native_batch_norm") in found
    assert ("num_batches_tracked", "aten.add_") in found
    assert (norm.running_mean._version, norm.running_var._version) == versions


def test_eval_mode_writes_nothing():
    norm = nn.BatchNorm2d(2).eval()
    assert traced(buffers(norm), lambda: norm(torch.randn(4, 2, 3, 3)))[0] == set()


def test_instance_norm_spectral_norm_and_max_norm_are_seen():
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    assert "running_mean" in {path for path, _ in traced(buffers(norm), lambda: norm(torch.randn(3, 2, 5)))[0]}
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    assert traced(buffers(spectral), lambda: spectral(torch.randn(2, 3)))[0]
    embedding = nn.Embedding(4, 2, max_norm=0.1).requires_grad_(False)
    found, _ = traced(buffers(embedding), lambda: embedding(torch.tensor([1])))
    assert found == {("weight", "aten.embedding_renorm_")}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_are_seen_also_the_fused_that_bump_no_version(kind, fused):
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = kind([weight], lr=0.1, fused=fused)
    version = weight._version
    found, _ = traced({"w": weight}, optimizer.step)
    assert {path for path, _ in found} == {"w"}
    assert (weight._version == version) is fused


def test_writes_beside_a_parameter_are_told_from_writes_to_it():
    weight = nn.Parameter(torch.ones(4))
    with torch.no_grad():
        _, plain = traced({"w": weight}, lambda: weight.add_(1))
        _, view = traced({"w": weight}, lambda: weight[:2].add_(1))
    _, data = traced({"w": weight}, lambda: weight.data.add_(1))
    assert [found[0].via_data for found in (plain, view, data)] == [False, False, True]


def test_parts_of_one_storage_are_told_apart():
    flat = torch.zeros(6)
    left, right = flat[:3], flat[3:]
    assert traced({"left": left, "right": right}, lambda: right.add_(1))[0] == {("right", "aten.add_")}


def drawn(module, *inputs):
    mode = DrawTrace(lambda: module)
    with torch.no_grad(), mode:
        module(*inputs)
    return {(draw.what, draw.op) for draw in mode.found}


class Hard(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x)


def test_what_only_training_needs_is_seen_in_eval_mode():
    x = torch.randn(2, 4, 8)
    assert drawn(Hard(lambda x: F.dropout(x, 0.5)).eval(), x) == {("dropout", "aten.bernoulli_")} or drawn(
        Hard(lambda x: F.dropout(x, 0.5)).eval(), x
    ) == {("dropout", "aten.native_dropout")}
    attend = Hard(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)).eval()
    assert {what for what, _ in drawn(attend, x)} == {"attention"}
    batch = Hard(lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True)).eval()
    assert {what for what, _ in drawn(batch, x)} == {"batch_norm"}


def test_what_is_right_in_eval_mode_is_let_be():
    x = torch.randn(2, 4, 8)
    assert drawn(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)).eval(), x) == set()
    assert drawn(nn.InstanceNorm1d(4).eval(), x) == set()
    attend = Hard(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.0)).eval()
    assert drawn(attend, x) == set()

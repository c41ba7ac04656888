"""S3: which statistics does this layer use? The table that tutorials get wrong, each row proved by running it."""

import torch
from torch import nn

import frostline as fl
from frostline.norms import EMA, StatsPolicy, set_policy

torch.manual_seed(0)
SHAPES = {
    "BatchNorm1d": (8, 3), "BatchNorm2d": (8, 3, 4, 4), "BatchNorm3d": (8, 3, 2, 2, 2), "SyncBatchNorm": (8, 3, 4, 4),
    "InstanceNorm2d": (8, 3, 4, 4), "GroupNorm": (8, 3, 4, 4), "LayerNorm": (8, 3, 4, 4),
}  # fmt: skip
# training, built with track_running_stats, track_running_stats now
ROWS = [(True, True, True), (True, False, False), (False, True, True), (False, False, False), (False, True, False),
        (True, True, False)]  # fmt: skip


def build(name, tracks):
    if name == "GroupNorm":
        return nn.GroupNorm(1, 3)
    if name == "LayerNorm":
        return nn.LayerNorm([4, 4])
    layer = getattr(nn, name)(3, track_running_stats=tracks)
    if tracks:
        layer.running_mean.fill_(1)
        layer.running_var.fill_(9)
    return layer


def observed(layer, x):
    """What a forward pass did: which statistics give its output, and whether a buffer moved."""
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    out = layer(x)
    over = {"batch": [d for d in range(x.ndim) if d != 1], "instance": list(range(2, x.ndim)), "sample": [1, 2, 3]}
    if isinstance(layer, nn.LayerNorm):
        over["sample"] = [2, 3]  # each image and channel by itself
    kinds = {"InstanceNorm2d": ["instance"], "GroupNorm": ["sample"], "LayerNorm": ["sample"]}
    by = {
        kind: (x - x.mean(over[kind], keepdim=True)) / x.std(over[kind], unbiased=False, keepdim=True)
        for kind in kinds.get(type(layer).__name__, ["batch"])
    }
    if before:
        by["running"] = (x - 1) / 3
    (used,) = [kind for kind, expected in by.items() if torch.allclose(out, expected, atol=1e-3)]
    return used, any(not torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


print("training  track_running_stats  normalizes with  updates  as PyTorch has it")
wrong = 0
for training, tracks, flag in ROWS:
    for name, shape in SHAPES.items():
        layer = build(name, tracks).train(training)
        if hasattr(layer, "track_running_stats"):
            layer.track_running_stats = flag
        (row,) = fl.explain(layer)
        seen = observed(layer, torch.randn(shape) * 2 + 4)
        wrong += seen != (row.uses, row.updates)
        if name == "BatchNorm2d":
            print(f"{training!s:9} {flag!s:20} {row.uses:16} {row.updates!s:8} {row.encoded}")
print(f"rows times layers read wrongly: {wrong} of {len(ROWS) * len(SHAPES)}")

print("What no switch of PyTorch expresses: running statistics, used and updated")
layer = build("BatchNorm2d", True).train()
with set_policy(layer, train=StatsPolicy("running", EMA(0.1))):
    print(fl.explain(layer))
    before = layer.running_mean.mean().item()
    layer(torch.randn(SHAPES["BatchNorm2d"]) * 2 + 4)
    print(f"running mean: {before:.2f} before, {layer.running_mean.mean().item():.2f} after")

"""S8: two views through one batch norm. The running statistics describe neither; statistics for each view do."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import frostline as fl

torch.set_num_threads(1)  # the matrices are small
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
digit = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1200], order[1200:]
# The same digits seen twice: as they are, and as overexposed photographic negatives of less contrast.
views = {"ground": images, "aerial": 2 - 0.8 * images}


def encoder():
    widths = [64, 128, 128, 128, 128, 128]
    blocks = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()] for a, b in zip(widths, [*widths[1:], 128], strict=True)]
    return nn.Sequential(*(layer for block in blocks for layer in block), nn.Linear(128, 10))


def fit(model, epochs=15):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            for view in views.values():  # one after the other, through the same layers
                cross_entropy(model(view[batch]), digit[batch]).backward()
            optimizer.step()


@torch.no_grad()
def estimate(model, inputs):
    """Statistics anew: in train mode, the plain average over batches of 240."""
    for layer in model.train().modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = None
            for name, buffer in layer.named_buffers():
                if name.startswith("num_batches_tracked"):
                    buffer.zero_()
    for batch in inputs[torch.randperm(len(inputs))].split(240):
        model(batch)


@torch.no_grad()
def error(model, name):
    return 100 * float((model.eval()(views[name][test]).argmax(1) != digit[test]).double().mean())


def errors_of_one_seed(seed):
    torch.manual_seed(seed)
    model = encoder()
    fit(model)
    pooled = copy.deepcopy(model)
    estimate(pooled, torch.cat([view[train] for view in views.values()]))
    split = copy.deepcopy(model)
    fl.norms.split_domains(split, list(views))
    for name, view in views.items():
        with fl.norms.domain(split, name):
            estimate(split, view[train])
    found = [error(shared, name) for shared in (model, pooled) for name in views]
    for name in views:
        with fl.norms.domain(split, name):
            found.append(error(split, name))
    return found


mean = torch.tensor([errors_of_one_seed(seed) for seed in range(3)]).mean(0).reshape(3, 2).tolist()
print("Test error of the same weights by which statistics they are given, mean of 3 seeds")
for name, errors in zip(["shared, as training left them", "shared, pooled anew", "one set a view"], mean, strict=True):
    print(f"  {name:30s} " + "  ".join(f"{view} {error:4.1f} %" for view, error in zip(views, errors, strict=True)))

"""S9: gradient accumulation. Batch norm updates k times per step, and so forgets k times too fast."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import frostline as fl
from frostline.norms import momentum_for, rescale_momentum, step_commit

torch.set_num_threads(1)  # the matrices are small
images, digit = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = images.float() / 16
MICRO, K, EPOCHS, COUNT = 8, 8, 8, 162  # 1296 images to train on
published = [index % K == 0 for index in range(COUNT)]
right = [(index + 1) % K == 0 or index == COUNT - 1 for index in range(COUNT)]


def check(name, schedule):
    ends = [index + 1 for index, steps in enumerate(schedule) if steps]
    parts = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    wrong = any(part != K for part in parts[:-1]) or ends[-1] != COUNT
    steps = f"{len(parts)} steps of {parts[0]}, {parts[1]}, ... {parts[-1]} micro-batches"
    print(f"{name:29} {steps}, {COUNT - ends[-1]} lost{': wrong' * wrong}")
    return len(parts)


def fit(model, optimizer, steps_per_epoch):
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps_per_epoch)
    for _ in range(EPOCHS):
        for batch, ends_step in zip(torch.randperm(1296).split(MICRO), right, strict=True):
            (cross_entropy(model(images[batch]), digit[batch]) / K).backward()
            if ends_step:
                optimizer.step()
                optimizer.zero_grad()
                rate.step()
    assert len(steps) == EPOCHS * steps_per_epoch


def distance(model):
    """How far the running statistics are from the population's, in its standard deviations; mean over layers."""
    loader = images[torch.randperm(1296)].split(MICRO)
    found = fl.norms.population_moments(model, loader, upstream="batch")  # normalized in micro-batches, as in training
    pairs = [(model.get_submodule(path), moments) for path, moments in found.items()]
    means = [((layer.running_mean - m.mean) / m.var().sqrt()).square().mean().sqrt() for layer, m in pairs]
    spreads = [(layer.running_var / m.var()).sqrt().sub(1).square().mean().sqrt() for layer, m in pairs]
    return float(sum(means)) / len(means), float(sum(spreads)) / len(spreads)


check("index % k == 0", published)
steps_per_epoch = check("(index + 1) % k == 0 or last", right)
print(f"momentum that remembers as many steps: {momentum_for(0.1, K):.5f} instead of 0.1")
print(f"what a step keeps of the old statistics: {0.9**K:.2f} naive, {(1 - momentum_for(0.1, K)) ** K:.2f} rescaled")
print(f"After {EPOCHS} epochs in micro-batches of {MICRO}, {K} per step; mean of 3 seeds")
results = {"naive": [], "rescaled momentum": [], "step_commit": []}
for seed in range(3):
    torch.manual_seed(seed)
    block = [nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64)]
    start = nn.Sequential(nn.Linear(64, 64), *block, nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    for how, found in results.items():
        torch.manual_seed(seed)
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if how == "rescaled momentum":
            rescale_momentum(model, K)
        elif how == "step_commit":
            step_commit(model, optimizer)
        fit(model, optimizer, steps_per_epoch)
        with torch.no_grad():
            error = (model.eval()(images[1296:]).argmax(1) != digit[1296:]).double().mean()
        found.append((*distance(model), 100 * float(error)))
for how, found in results.items():
    mean, spread, error = torch.tensor(found).mean(0).tolist()
    print(f"  {how:18} mean off by {mean:.3f} sd, spread by {spread:.3f}; test error in eval mode {error:.1f} %")

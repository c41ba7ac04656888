"""S6: few-shot learning under batch norm, two ways to get the statistics wrong, and what they do."""

import copy

import torch
from torch import nn

import frostline as fl
from frostline import meta

digits = meta.digits(rotations="classes")  # 40 classes: ten digits, each turned by quarters
splits = meta.Splits.draw(digits, {"train": 7, "test": 3}, seed=0)  # digits, with all their turns
tasks = meta.Tasks(digits, way=5, shot=5, queries=10, splits=splits)
task = tasks.task("test", 0)


def block(channels):
    return nn.Sequential(nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())


def plain_loop(model, steps=7, rate=0.1):
    """What everyone writes: SGD steps on a copy of the model, in eval mode."""
    model = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(task.support.inputs), task.support.labels)
        print(f"  step {step}: loss {loss.item():.3g}, norm of conv1 {model.conv1[0].weight.norm().item():.3g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model(task.query.inputs).argmax(1) == task.query.labels
    print(f"  accuracy {right.float().mean().item():.1%}")


torch.manual_seed(0)
torch.set_num_threads(2)
net = nn.Sequential()
for number in range(1, 5):
    net.add_module(f"conv{number}", block(1 if number == 1 else 32))
    net.add_module(f"pool{number}", nn.MaxPool2d(2) if number < 3 else nn.Identity())
net.append(nn.Flatten()).append(nn.Linear(128, 5))
maml = meta.MAML(net, inner_lr=0.1, steps=5, policy="batch")
optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
for iteration in range(60):
    optimizer.zero_grad()
    batch = maml.backward(tasks.batch("train", iteration * 8, 8))
    optimizer.step()
print(f"meta-trained with the statistics of the batch: {batch.accuracy:.1%} of the queries of the last batch")

print("\nThe first mistake: net.eval() and statistics that were never updated")
plain_loop(net)
print(meta.explain_adaptation(maml, task, policy="frozen", steps=7).notes[0])

print("\nThe second mistake: net.eval() and the honest statistics of 100 training tasks")
honest = copy.deepcopy(net).train()
for layer in honest.modules():
    if isinstance(layer, nn.BatchNorm2d):
        layer.momentum = None
with torch.no_grad():
    for index in range(100):
        honest(tasks.task("train", index).support.inputs)
plain_loop(honest)

print("\nThe same, guarded:")
learner = meta.MAML(honest, inner_lr=0.1, steps=7, policy="batch")
try:
    learner.adapt(task.support, policy="frozen")
except fl.errors.InnerLoopDiverged as error:
    print(error)

print("\nNothing leaks between tasks, whatever the policy:")
print(str(meta.check_leaks(learner, task, tasks.task("test", 1))).splitlines()[0])

print("\nThe policies, on the same 50 tasks of classes that were never seen:")
policies = ["batch", "support", "task_norm_i", "batch/frozen", "frozen"]
for row in meta.evaluate(learner, tasks, count=50, policies=policies).rows:
    print(f"  {row.policy:12}  {row.kind:12}  {row.accuracy:6.1%} +- {row.interval:.1%}, {row.skipped} blew up")

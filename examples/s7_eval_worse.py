"""Eval is worse than train: the cause is named, a remedy is applied, and the accuracy is measured again.

A net learns handwritten digits in batches of 16, twice: with the usual momentum of its batch norms, and with 0.9, which
TensorFlow users carry over (there it is the weight of the old value). Nothing else differs.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import frostline as fl

torch.set_num_threads(1)
digits = load_digits()
images = (torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16 - 0.3) / 0.37
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1000], order[1000:]


def batches(rows: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(images[i], labels[i]) for i in rows.split(size) if len(i) == size]


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        hits = [model(x).argmax(1) == y for x, y in batches(test, 8)]
    return 100 * torch.cat(hits).float().mean().item()


def learn(momentum: float) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, momentum=momentum), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8 * 62)
    for epoch in range(8):
        rows = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))]
        for x, y in batches(rows, 16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


for momentum in (0.1, 0.9):
    model = learn(momentum)
    print(f"momentum {momentum}: accuracy in eval mode {accuracy(model):.1f}%")
    report = fl.diagnose(model, batches(test, 64), "accuracy", train_loader=batches(train, 64), batch_size=16)
    print(f"  {report.cause}: {report.causes[0].evidence}")
    for remedy in report.remedies:
        if remedy.measured and remedy.gain:
            print(f"  {remedy.name}: {remedy.measured}, {remedy.advice}")
    repair = fl.recalibrate(model, batches(train, 250), metric="accuracy", held_out=batches(test, 64))
    print(f"  recalibrated, {'kept' if repair.accepted else 'rolled back'}: {accuracy(model):.1f}%")

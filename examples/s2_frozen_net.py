"""S2: the frozen net that changes from epoch to epoch, although there is no optimizer at all."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import frostline as fl

images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
train_x, test_x = images[:1300], images[1300:]

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10),
)  # fmt: skip


@torch.no_grad()
def epoch():
    """What the user's loop does, without any training."""
    net.train()
    net(train_x)
    net.eval()
    return net(test_x)


print("The mistake: net.requires_grad_(False), taken for frozen")
net.requires_grad_(False)
first, second = epoch(), epoch()
print("  two epochs, same test_x, outputs equal:", torch.equal(first, second))
print(f"  largest difference: {float((first - second).abs().max()):.3g}")

print("\nWhat each layer does in train mode, by fl.explain:")
print(fl.explain(net.train()))

print("\nFrozen with fl.freeze(net, '*')")
hold = fl.freeze(net, "*")
first, second = epoch(), epoch()
print("  two epochs, same test_x, outputs equal:", torch.equal(first, second))
print(f"  {hold.verify()}\n")
print(fl.explain(net))

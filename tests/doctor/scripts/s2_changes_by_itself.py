"""S2 as a user wrote it: everything is frozen, there is no optimizer, and the output changes from epoch to epoch."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
)
net.requires_grad_(False)
train_x, test_x = torch.randn(16, 3, 10, 10), torch.randn(4, 3, 10, 10)
for epoch in range(2):
    net.train()
    net(train_x)
    net.eval()
    print(net(test_x).sum().item())

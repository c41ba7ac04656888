"""S4 as a tutorial had it: `require_grad`, and groups that miss a layer and the optimizer's lr for the rest."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential()
net.add_module("features", nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
net.add_module("bottleneck", nn.Linear(6, 5))
net.add_module("fc", nn.Linear(5, 2))
for param in net.features.parameters():
    param.require_grad = False
groups = [{"params": net.features.parameters()}, {"params": net.fc.parameters(), "lr": 1e-2}]
optimizer = torch.optim.SGD(groups, lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
for epoch in range(3):
    net.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(torch.randn(8, 3, 10, 10)), torch.randint(2, (8,)))
        loss.backward()
        optimizer.step()
    scheduler.step()

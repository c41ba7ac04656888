"""S9 as it was published: the step comes after the first micro-batch, and the tail is lost."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
batches = [(torch.randn(4, 5), torch.randint(2, (4,))) for _ in range(10)]
accumulation = 4
for epoch in range(2):
    net.train()
    for index, (images, labels) in enumerate(batches):
        prediction = net(images)
        loss = nn.functional.cross_entropy(prediction, labels) / accumulation
        loss.backward()
        if index % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()

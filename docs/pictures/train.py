import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)

trunk = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
net = nn.Sequential(trunk, nn.Linear(64, 10))
trunk.requires_grad_(False)  # frozen, or so it seems
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

for epoch in range(3):
    net.train()
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        loss = cross_entropy(net(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()

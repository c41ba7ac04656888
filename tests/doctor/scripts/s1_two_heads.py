"""S1 as a user wrote it: head 1 trains, trunk and head 2 are "frozen"."""

import torch
from torch import nn


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head1, self.head2 = nn.Linear(8, 4), nn.Linear(8, 6)

    def forward(self, x):
        features = self.trunk(x)
        return self.head1(features), self.head2(features)


torch.manual_seed(0)
net = TwoHeads()
for name, param in net.named_parameters():
    if not name.startswith("head1"):
        param.requires_grad = False
optimizer = torch.optim.SGD(filter(lambda p: p.requires_grad, net.parameters()), lr=0.01, momentum=0.9)
criterion = nn.CrossEntropyLoss()
before = {k: v.clone() for k, v in net.named_parameters()}
for epoch in range(3):
    net.train()
    for _ in range(4):
        images, labels = torch.randn(8, 3, 12, 12), torch.randint(4, (8,))
        optimizer.zero_grad()
        out1, _ = net(images)
        loss = criterion(out1, labels)
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        net(torch.randn(8, 3, 12, 12))
changes = [float((v - before[k]).abs().max()) for k, v in net.head2.named_parameters(prefix="head2")]
print("largest change of head 2:", max(changes))

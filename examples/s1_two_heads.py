"""S1: two heads on one trunk. Training one must not change the other; with requires_grad=False alone it does."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import frostline as fl

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
digit = torch.tensor(digits.target)
train, test = slice(0, 1300), slice(1300, None)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        )  # fmt: skip
        self.heads = nn.ModuleDict({"digit": nn.Linear(128, 10), "parity": nn.Linear(128, 2)})

    def forward(self, x, head):
        return self.heads[head](self.trunk(x))


def fit(model, head, inputs, labels, epochs=10):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        model.train()  # what every training loop does, and what undoes eval()
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            cross_entropy(model(inputs[batch], head), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def digit_logits(model):
    return model.eval()(images[test], "digit")


def accuracy(logits):
    return f"{(logits.argmax(1) == digit[test]).double().mean():.2%}"


torch.manual_seed(0)
model = TwoHeads()
fit(model, "digit", images[train], digit[train])
# The second head learns from another scanner: the same digits, dark ink on white paper.
negatives, parity = 1 - images[train], digit[train] % 2

print("The mistake: requires_grad=False, and the loop calls model.train()")
naive = copy.deepcopy(model)
naive.trunk.requires_grad_(False)
naive.heads["digit"].requires_grad_(False)
before, state = digit_logits(naive), fl.snapshot(naive, "trunk", "heads.digit", values="buffers")
weights = {name: p.clone() for name, p in naive.named_parameters()}
fit(naive, "parity", negatives, parity)
after = digit_logits(naive)
moved = max(float((p - weights[n]).abs().max()) for n, p in naive.named_parameters() if not p.requires_grad)
print("  largest change among frozen named_parameters():", moved)
print(f"  digit head: accuracy {accuracy(before)} before, {accuracy(after)} after")
for row in state.diff(naive.train()).where("buffer").moved:
    print(f"  moved: {row.path}, by up to {row.max_abs:.3g}")

print("The same loop with fl.freeze")
hold = fl.freeze(model, "trunk", "heads.digit")
before = digit_logits(model)
fit(model, "parity", negatives, parity)
after = digit_logits(model)
print(f"  digit head: accuracy {accuracy(before)} before, {accuracy(after)} after")
print("  logits equal to the bit:", torch.equal(before, after))
print(f"  {hold.verify()}")

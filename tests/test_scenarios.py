"""Scenarios S1 and S2 on real data: the digits of scikit-learn, two heads on one trunk."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import frostline as fl


class TwoHeads(nn.Module):
    """A trunk with batch norm and dropout that feeds two heads."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 24, 3, padding=1, stride=2), nn.BatchNorm2d(24), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        )  # fmt: skip
        self.head1 = nn.Linear(24 * 16, 2)
        self.head2 = nn.Linear(24 * 16, 10)

    def forward(self, x):
        features = self.trunk(x)
        return self.head1(features), self.head2(features)


@pytest.fixture(scope="module")
def digits():
    source = load_digits()
    images = torch.tensor(source.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(source.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return images[train], labels[train], images[test], labels[test]


def train(model, parameters, images, labels, head, *, epochs, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(parameters, lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        model.train()  # as every loop does
        for batch in torch.randperm(len(images), generator=generator).split(64):
            loss = nn.functional.cross_entropy(model(images[batch])[head], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def logits(model, images):
    modes = [m.training for m in model.modules()]
    model.eval()
    out = model(images)[1]
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return out


def accuracy(out, labels):
    return (out.argmax(1) == labels).float().mean().item()


@pytest.fixture(scope="module")
def pretrained(digits):
    images, labels, _, _ = digits
    torch.manual_seed(0)
    model = TwoHeads()
    train(model, model.parameters(), images, labels, 1, epochs=6)
    return model


@pytest.fixture
def second_phase(digits):
    """Head 1 learns parity on the large digits only, from a darker scan: the data moved on."""
    images, labels, _, _ = digits
    large = labels >= 5
    return images[large] * 0.4, labels[large] % 2


class TestS1:
    def test_naive(self, pretrained, digits, second_phase):
        _, _, images, labels = digits
        model = copy.deepcopy(pretrained)
        before, parameters = (
            logits(model, images),
            [p.clone() for p in [*model.trunk.parameters(), *model.head2.parameters()]],
        )
        state = fl.snapshot(model, "trunk", "head2", values=True)
        model.trunk.requires_grad_(False)
        model.head2.requires_grad_(False)
        train(model, model.head1.parameters(), *second_phase, 0, epochs=4)
        model.requires_grad_(True)

        # What users compare: nothing at all has moved.
        now = [*model.trunk.parameters(), *model.head2.parameters()]
        assert sum((a - b).abs().sum().item() for a, b in zip(parameters, now, strict=True)) == 0
        # What happened.
        after = logits(model, images)
        assert not torch.equal(before, after)
        assert accuracy(before, labels) > 0.95
        assert accuracy(after, labels) < accuracy(before, labels)  # 98.0 % to 96.5 % where this was written
        moved = state.diff(model)
        assert moved.paths == [
            f"trunk.{i}.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")
        ]
        assert all(row.max_abs > 0 for row in moved.moved)
        assert set(moved.by_role()) == {"norm.mean", "norm.var", "norm.count"}

    def test_held(self, pretrained, digits, second_phase):
        _, _, images, labels = digits
        model = copy.deepcopy(pretrained)
        before, first = logits(model, images), model.head1.weight.clone()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        hold = fl.freeze(model, "trunk", "head2", optimizer=optimizer)
        train(model, None, *second_phase, 0, epochs=4, optimizer=optimizer)
        hold.verify()
        after = logits(model, images)
        assert torch.equal(before, after)
        assert accuracy(after, labels) == accuracy(before, labels)
        assert not torch.equal(model.head1.weight, first)  # and head 1 did learn


class TestS2:
    def epochs(self, model, train_x, test_x):
        """Two epochs with no optimizer at all."""
        outputs = []
        for _ in range(2):
            model.train()
            model(train_x)
            model.eval()
            with torch.no_grad():
                outputs.append(model(test_x)[1])
        return outputs

    def test_naive(self, pretrained, digits):
        train_x, _, test_x, _ = digits
        model = copy.deepcopy(pretrained).requires_grad_(False)
        assert not torch.equal(*self.epochs(model, train_x * 0.5, test_x))
        explained = fl.explain(model.train())
        assert [f.code for f in explained.findings] == ["F107"]
        assert [row.path for row in explained if row.updates] == ["trunk.1", "trunk.4"]

    def test_held(self, pretrained, digits):
        train_x, _, test_x, _ = digits
        model = copy.deepcopy(pretrained)
        hold = fl.freeze(model, "*")
        assert torch.equal(*self.epochs(model, train_x * 0.5, test_x))
        explained = fl.explain(model.train())
        assert explained.findings == []
        assert not any(row.updates for row in explained)
        hold.verify()

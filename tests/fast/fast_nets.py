"""Small models of the kinds that a prefix has to be found in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Branches(nn.Module):
    """Two inputs, a frozen branch for each, a skip from an input, and a part that trains between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.t, self.h = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The part that trains runs first."""
        trained = self.t(y)
        return self.h(self.a(x) * self.b(y).relu() + trained + x)


class Prompted(nn.Module):
    """A prompt that trains is added before the frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.prompt, self.trunk, self.h = (
            nn.Linear(4, 4),
            nn.Parameter(torch.zeros(4)),
            nn.Linear(4, 4),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Stem, prompt, trunk, head."""
        return self.h(self.trunk(self.stem(x) + self.prompt))


class Shared(nn.Module):
    """One frozen layer, called on the input and again on what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.t, self.h = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The second call depends on what trains."""
        return self.h(self.layer(self.t(self.layer(x))))


class Several(nn.Module):
    """A frozen part that returns a mapping with a tensor for samples, one for all of them, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.h = _Mapping(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Reads all three."""
        found = self.trunk(x)
        return self.h(found["rows"] * found["table"] + found["number"])


class _Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"rows": self.layer(x), "table": self.table * 2, "number": 0.5}


class Noisy(nn.Module):
    """Drops at random whatever its mode."""

    def forward(self, x: Tensor) -> Tensor:
        """``F.dropout`` drops by default."""
        return functional.dropout(x)


class Counting(nn.Module):
    """Keeps a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"n": 0}

    def forward(self, x: Tensor) -> Tensor:
        """Another result each time."""
        self.calls["n"] += 1
        return x + self.calls["n"]


class Centred(nn.Module):
    """Subtracts the mean of the batch: depends on the other samples, and has no batch norm to tell it by."""

    def forward(self, x: Tensor) -> Tensor:
        """By function."""
        return x - x.mean(0)


class Writing(nn.Module):
    """Writes a buffer in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Counts samples."""
        self.seen += len(x)
        return x * 2


class InPlace(nn.Module):
    """The rest writes into what the frozen part returns."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.h = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``add_`` in place."""
        return self.h(self.trunk(x).add_(1))


def images_net() -> nn.Sequential:
    """Convolutions with batch norm, a dropout, and a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )

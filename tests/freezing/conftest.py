"""Models, and checks that share no code with what they check."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class GatedCodebook(nn.Module):
    """Learns by exponential moving averages in train mode: a vector quantizer as most are written."""

    def __init__(self, size: int = 4, width: int = 6) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(size, width))
        self.codes: Tensor

    def learns(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(0, -2), self.codes).argmin(1)
        out = self.codes[nearest].view_as(x)
        if self.learns():
            with torch.no_grad():
                self.codes.lerp_(x.flatten(0, -2).mean(0).expand_as(self.codes), 0.1)
        return x + (out - x).detach()


class UngatedCodebook(GatedCodebook):
    """The same, but it learns in every mode."""

    def learns(self) -> bool:
        return True


class TwoHeads(nn.Module):
    """A trunk with the state that drifts (batch norm, dropout), and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
        )
        self.old = nn.Linear(4 * 16, 3)
        self.new = nn.Linear(4 * 16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {"old": self.old(features), "new": self.new(features)}


@pytest.fixture
def gated_codebook() -> type[nn.Module]:
    return GatedCodebook


@pytest.fixture
def ungated_codebook() -> type[nn.Module]:
    return UngatedCodebook


@pytest.fixture
def two_heads() -> TwoHeads:
    return TwoHeads()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 1, 4, 4)


@pytest.fixture
def old_spectral_norm() -> Callable[..., nn.Module]:
    """The older API, whose buffers lie beside the weight; deprecated, and still in many models."""

    def wrap(module: nn.Module, **settings: object) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.spectral_norm(module, **settings)

    return wrap


@pytest.fixture
def naive() -> Callable[[nn.Module], nn.Module]:
    """What most training code does: stop the gradients, and let the loop call ``model.train()``."""

    def freeze(part: nn.Module) -> nn.Module:
        return part.requires_grad_(False)

    return freeze


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.fixture
def bytes_of() -> Callable[[nn.Module], dict[str, bytes]]:
    """Every parameter and buffer of a module as bytes; shares no code with frostline's digests."""

    def read(module: nn.Module) -> dict[str, bytes]:
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        return {path: raw(tensor) for path, tensor in tensors}

    return read


@pytest.fixture
def moved() -> Callable[[dict[str, bytes], dict[str, bytes]], set[str]]:
    """The names whose bytes differ."""

    def compare(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    return compare


@pytest.fixture
def train() -> Callable[..., None]:
    """A training loop as users write it: it puts the whole model into train mode, every time."""

    def loop(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None, *, steps: int = 3) -> None:
        for _ in range(steps):
            model.train()
            out = model(x)
            loss = sum(o.square().mean() for o in out.values()) if isinstance(out, dict) else out.square().mean()
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

    return loop


@pytest.fixture
def vit_tiny() -> nn.Module:
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()  # timm imports torchvision, which may not load beside a CPU build of torch
        import timm
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)


class Twin:
    """One way to freeze. The naive one must fail the check that ours must pass, or the check proves nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hold: fl.freezing.Hold | None = None

    def freeze(self, model: nn.Module, *paths: str, **settings: Any) -> None:
        if self.name == "ours":
            self.hold = fl.freeze(model, *paths, **settings)
            return
        for path in paths:
            model.get_submodule(path).requires_grad_(False)

    def verdict(self) -> AbstractContextManager[Any]:
        """The context in which the check stands."""
        return nullcontext() if self.name == "ours" else pytest.raises(AssertionError)


@pytest.fixture(params=["naive", "ours"])
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)

"""Draws the pictures of the pages: ``python docs/site/pictures.py``. They are small, and the same on each run.

Each is computed by the code that its page is about; no figure is made up.
"""

from __future__ import annotations

import copy
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
# Readable on a light and on a dark page, and told apart by those who see no red or green.
_GREY, _BLUE, _ORANGE = "#7a7f87", "#2f7ed8", "#d9822b"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "frostline",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_all(folder: Path = FOLDER) -> list[Path]:
    """Draws every picture.

    Args:
        folder: where they go.

    Returns:
        The files.
    """
    images, digit = _digits()
    with mpl.rc_context(_STYLE):
        return [
            _draw_drift(images, digit, folder / "s1-drift.svg"),
            _draw_memory(folder / "momentum-noise.svg"),
            _draw_unfreezing(images, digit, folder / "unfreezing-loss.svg"),
        ]


def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)


class _TwoHeads(nn.Module):
    """The network of the tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        )  # fmt: skip
        self.digit = nn.Linear(144, 10)
        self.parity = nn.Linear(144, 2)

    def forward(self, x: Tensor, head: str) -> Tensor:
        return getattr(self, head)(self.trunk(x))


def _step(model: nn.Module, head: str, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = cross_entropy(model.train()(x, head), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def _pretrained(images: Tensor, digit: Tensor) -> _TwoHeads:
    torch.manual_seed(0)
    model = _TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(3):
        for batch in torch.randperm(1200).split(32):
            _step(model, "digit", images[batch], digit[batch], optimizer)
    return model


def _draw_drift(images: Tensor, digit: Tensor, path: Path) -> Path:
    """How far weights and statistics of the frozen trunk have gone, and what the old head makes of it."""
    model = _pretrained(images, digit)
    model.trunk.requires_grad_(False)
    model.digit.requires_grad_(False)
    start = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    statistics, weights, right = [], [], []
    for batch in torch.randperm(1200).repeat(2).split(32)[:60]:
        with torch.no_grad():
            right.append(100 * (model.eval()(images[1200:], "digit").argmax(1) == digit[1200:]).float().mean().item())
            pairs = [(model.trunk[i], start.trunk[i]) for i in (1, 4)]
            moved = torch.cat([(a.running_mean - b.running_mean) / b.running_var.sqrt() for a, b in pairs])
            statistics.append(moved.square().mean().sqrt().item())
            same = zip(model.trunk.parameters(), start.trunk.parameters(), strict=True)
            weights.append(max((a - b).abs().max().item() for a, b in same))
        _step(model, "parity", 1 - images[batch], digit[batch] % 2, optimizer)
    figure, (left, below) = _axes(2)
    left.plot(statistics, color=_ORANGE, label="running means, in standard deviations")
    left.plot(weights, color=_BLUE, label="weights: exactly 0")
    left.set(xlabel="step of the other head", ylabel="distance from the start")
    left.legend(frameon=False, labelcolor=_GREY, loc="lower right", bbox_to_anchor=(1, 0.1))
    below.plot(right, color=_ORANGE)
    below.set(xlabel="step of the other head", ylabel="accuracy of the frozen head, %")
    return _save(figure, path)


def _draw_memory(path: Path) -> Path:
    """The running mean of a layer whose input has mean 0 and deviation 1, batches of 16."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(150, 16, 1, generator=generator)
    figure, (axes,) = _axes(1)
    for momentum, colour in ((0.9, _ORANGE), (0.1, _BLUE)):
        layer, seen = nn.BatchNorm1d(1, momentum=momentum), []
        for batch in data:
            layer(batch)
            assert layer.running_mean is not None
            seen.append(layer.running_mean.item())
        axes.plot(seen, color=colour, label=f"momentum {momentum}")
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.set(xlabel="batch of 16", ylabel="running mean (the truth is 0)")
    axes.legend(frameon=False, labelcolor=_GREY)
    return _save(figure, path)


def _draw_unfreezing(images: Tensor, digit: Tensor, path: Path) -> Path:
    """The validation loss after a trunk is unfrozen with the head's rate, and with a hundredth of it."""
    start = _pretrained(images, digit)
    figure, (axes,) = _axes(1)
    for rate, label, colour in ((0.2, "trunk at the head's rate", _ORANGE), (0.002, "trunk at a hundredth", _BLUE)):
        torch.manual_seed(1)
        model = copy.deepcopy(start)
        groups = [{"params": model.trunk.parameters(), "lr": rate}, {"params": model.digit.parameters(), "lr": 0.2}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        order = torch.randperm(1200).repeat(2).split(32)[:50]
        losses = []
        for batch in order:
            with torch.no_grad():
                losses.append(cross_entropy(model.eval()(images[1200:], "digit"), digit[1200:]).item())
            _step(model, "digit", images[batch], digit[batch], optimizer)
        axes.plot(losses, color=colour, label=label)
    axes.set(xlabel="step after unfreezing", ylabel="validation loss", yscale="log")
    axes.legend(frameon=False, labelcolor=_GREY)
    return _save(figure, path)


def _axes(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.8 * count + (1.4 if count == 1 else 0), 2.8), layout="constrained")
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib ends lines with spaces, which the checks of the repository would take away.
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    for drawn in draw_all():
        print(drawn.name)

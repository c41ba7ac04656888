"""How steeply the inner loss curves, which says how large a step may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

_Grads = tuple[Tensor | None, ...]


def largest_curvature(
    loss: Callable[[list[Tensor]], Tensor],
    params: Sequence[Tensor],
    *,
    iterations: int = 60,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> float:
    """The largest eigenvalue of the Hessian of a loss, by power iteration with Hessian-vector products.

    Gradient descent on a quadratic with this curvature is stable below the rate 2 / curvature. Nothing is changed, and
    the global generators are not used.

    Args:
        loss: of the parameters, twice differentiable.
        params: where the Hessian is taken.
        iterations: products at most, for each of two runs where the eigenvalue of largest size is negative.
        tolerance: the relative change below which it stops.
        seed: of the vector to begin with.

    Returns:
        The eigenvalue; from below, as every estimate by vectors. Not above 0 where the loss curves nowhere upwards.

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -5.0]))
        >>> round(largest_curvature(lambda p: 0.5 * p[0] @ matrix @ p[0], [torch.ones(3)]), 2)
        3.0
    """
    points = [p.detach().requires_grad_() for p in params]
    with torch.enable_grad():
        grads = cast("_Grads", torch.autograd.grad(loss(points), points, create_graph=True, allow_unused=True))
    reached = [(p, g) for p, g in zip(points, grads, strict=True) if g is not None and g.requires_grad]
    if not reached:
        return 0.0
    places, slopes = [p for p, _ in reached], [g for _, g in reached]
    generator = torch.Generator().manual_seed(seed)
    start = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in places]

    def product(vector: list[Tensor], shift: float) -> list[Tensor]:
        found = cast("_Grads", torch.autograd.grad(slopes, places, vector, retain_graph=True, allow_unused=True))
        return [shift * v if h is None else h + shift * v for h, v in zip(found, vector, strict=True)]

    largest = _power(product, start, 0.0, iterations, tolerance)
    if largest >= 0:
        return largest
    # The largest in size curves downwards: moved up by it, the rest of the spectrum is not negative.
    return _power(product, start, -largest, iterations, tolerance) + largest


def _power(
    product: Callable[[list[Tensor], float], list[Tensor]],
    vector: list[Tensor],
    shift: float,
    iterations: int,
    tolerance: float,
) -> float:
    value = 0.0
    for _ in range(iterations):
        length = sum((v.square().sum() for v in vector), torch.zeros(())).sqrt()
        if not length > 0:
            return 0.0
        vector = [v / length for v in vector]
        after = product(vector, shift)
        before, value = value, float(sum((v * h).sum() for v, h in zip(vector, after, strict=True)))
        if abs(value - before) <= tolerance * abs(value):
            break
        vector = after
    return value

"""What happens while a learner adapts to one task: losses, norms of weights and gains of batch norm, step by step.

Reads only; everything runs on copies and on statistics that are values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.errors import name_some
from frostline.json_values import finite
from frostline.meta.functional_model import governed_layers
from frostline.meta.inner_loop import InnerLoop, adapted_by
from frostline.meta.inner_optimizers import Rate
from frostline.meta.normalizing import LayerStatistics
from frostline.meta.passes import Passes
from frostline.meta.task import Examples, Task
from frostline.tables import html_table, text_table

if TYPE_CHECKING:
    from frostline.meta.gradient_learner import GradientLearner

SCHEMA_VERSION = 1
FIXED = frozenset({"frozen", "running", "population", "per_step"})
"""The sources whose statistics stay as they are while the weights in front of them move."""


@dataclass(frozen=True)
class Gain:
    """By how much a batch norm multiplies in one pass.

    Attributes:
        largest: the largest |weight| / sigma over channels.
        sigma: what that channel is divided by.
        own: sigma of the same channel in the batch that went through.
    """

    largest: float
    sigma: float
    own: float


@dataclass(frozen=True, eq=False)
class Walk:
    """One inner loop, looked at.

    Attributes:
        losses: on the support set, before the first step and after each.
        norms: of the adapted weights by layer, likewise.
        gains: by path of the norm layer, likewise; layers that normalize each sample by itself have none.
        values: the parameters at the end.
        buffers: the buffers at the end.
    """

    losses: tuple[float, ...]
    norms: tuple[Mapping[str, float], ...]
    gains: tuple[Mapping[str, Gain], ...]
    values: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @property
    def falls(self) -> bool:
        """Whether the loss is finite all the way, and lower at the end than at the start."""
        return all(map(math.isfinite, self.losses)) and self.losses[-1] < self.losses[0]

    @property
    def never_above_the_start(self) -> bool:
        """Whether no step leads to a higher loss than that before the first; NaN is not."""
        return all(loss <= self.losses[0] for loss in self.losses)


def walk(
    learner: GradientLearner,
    passes: Passes,
    values: Mapping[str, Tensor],
    labels: Tensor,
    steps: int,
    *,
    scale: float = 1.0,
    gains: bool = False,
) -> Walk:
    """Adapt without a graph and without a guard, and look at each step. Nothing that is passed is changed.

    Args:
        learner: how to adapt.
        passes: on what, and with which statistics.
        values: the parameters to begin with.
        labels: of the support set.
        steps: how many.
        scale: of the learner's rates.
        gains: whether to look at the gains.
    """

    def rates(step: int) -> Sequence[Rate]:
        return [rate * scale for rate in learner.rates.at(step, only=learner.adapted)]

    values = {path: value.detach() for path, value in values.items()}
    loop = InnerLoop(steps, learner.loss, learner.inner_optimizer, rates, observe=gains)
    done = adapted_by(loop, passes, values, learner.adapted, labels, keep_path=True)
    states = [{path: values[path] for path in learner.adapted}, *done.path]
    final = {path: value.detach() for path, value in done.values.items()}
    with torch.no_grad():
        last = passes.inner(final, steps, done.buffers, observe=gains)
        losses = torch.stack([*done.losses, learner.loss(last.output, labels)]).tolist()
        found: list[dict[str, Gain]] = []
        if gains:
            layers = governed_layers(learner.model)
            for step, (state, observed) in enumerate(zip(states, [*done.observed, last.observed], strict=True)):
                all_values = {**values, **state, **passes.norms.affine_of(step)}
                found.append(_gains(passes, layers, all_values, observed, step))
    return Walk(tuple(losses), tuple(map(norms_by_layer, states)), tuple(found), final, done.buffers)


def norms_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The norm of all tensors of one module together, by the path of the module.

    Example:
        >>> norms_by_layer({"fc.weight": torch.tensor([3.0]), "fc.bias": torch.tensor([4.0])})
        {'fc': 5.0}
    """
    return by_layer(tuple(tensors), norms_of(list(tensors.values())).tolist())


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of each tensor, in one tensor on their device."""
    with torch.no_grad():
        # The square of a half-precision number leaves its range early.
        wide = [t.float() if t.dtype.itemsize < 4 else t for t in tensors]
        norms: tuple[Tensor, ...] = torch._foreach_norm(wide)  # pyright: ignore[reportPrivateImportUsage]
        return torch.stack(norms)


def by_layer(paths: Sequence[str], norms: Sequence[float]) -> dict[str, float]:
    """Norms of tensors, brought together by the module that owns them."""
    squares: dict[str, float] = {}
    for path, norm in zip(paths, norms, strict=True):
        layer = path.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0.0) + norm * norm
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def _gains(
    passes: Passes,
    layers: Mapping[str, _BatchNorm],
    values: Mapping[str, Tensor],
    observed: Mapping[str, LayerStatistics],
    step: int,
) -> dict[str, Gain]:
    source = passes.policy.inner_source(step)
    if source not in FIXED and source not in ("batch", "support"):
        return {}
    found: dict[str, Gain] = {}
    for path, seen in observed.items():
        eps = layers[path].eps
        used = passes.kept.of_source(source, step)[path] if source in FIXED else seen
        sigma, own = (used.var + eps).sqrt(), (seen.var + eps).sqrt()
        weight = values.get(f"{path}.weight" if path else "weight")
        gain = sigma.reciprocal() if weight is None else weight.abs() / sigma
        channel = int(gain.argmax())
        found[path] = Gain(*torch.stack([gain[channel], sigma[channel], own[channel]]).tolist())
    return found


@dataclass(frozen=True)
class AdaptationReport:
    """How a learner adapts to one task.

    Attributes:
        policy: the statistics policy.
        rate: the learner's rate of the inner steps.
        losses: on the support set, before the first step and after each.
        norms: of the adapted weights by layer, likewise.
        gains: the largest |weight| / sigma by norm layer, likewise; empty where each sample is normalized by itself.
        notes: what is wrong, in words; empty if nothing is known to be.
    """

    policy: str
    rate: float
    losses: tuple[float, ...]
    norms: dict[str, tuple[float, ...]]
    gains: dict[str, tuple[float, ...]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values with a schema version."""
        return finite({"schema_version": SCHEMA_VERSION, **asdict(self)})

    def __str__(self) -> str:
        rows = self._rows()
        shown = [rows[0], *sorted(rows[1:], key=_movement, reverse=True)[:12]]
        kept = [row for row in rows if row in shown]
        more = (
            [f"(+{len(rows) - len(kept)} more rows that move less; report.to_json())"] if len(rows) > len(kept) else []
        )
        title = f"adapting with policy {self.policy!r} at rate {self.rate:g}"
        return "\n".join([title, text_table(self._columns(), kept, width=120), *more, *self.notes])

    def _repr_html_(self) -> str:
        return html_table(self._columns(), self._rows(), caption=f"policy {self.policy}, rate {self.rate:g}")

    def _columns(self) -> list[str]:
        return ["", "start", *(f"step {step}" for step in range(1, len(self.losses)))]

    def _rows(self) -> list[list[Any]]:
        rows: list[list[Any]] = [["support loss", *self.losses]]
        rows += [[f"norm of {path or 'the model'}", *values] for path, values in self.norms.items()]
        return rows + [[f"gain of {path or 'the model'}", *values] for path, values in self.gains.items()]


def _movement(row: Sequence[Any]) -> float:
    """By which factor the row moved at most; what is not finite moved the most."""
    numbers: list[float] = list(row[1:])
    if not all(map(math.isfinite, numbers)):
        return math.inf
    low, high = min(numbers), max(numbers)
    return high / low if low > 0 else high


def explain_adaptation(
    learner: GradientLearner, task: Task | Examples, *, policy: Any = None, steps: int | None = None
) -> AdaptationReport:
    """Adapt to a task without a guard, and tell losses, norms and gains of each step, and what is wrong.

    Told in words: batch norm that normalizes with statistics that were never updated, and a loss that ends at chance.
    The learner and its model stay as they are. What stops a blow-up and explains it is
    :class:`~frostline.meta.Guard`.

    Args:
        learner: one that adapts by gradient steps.
        task: a task, or a support set alone.
        policy: by default the learner's own.
        steps: inner steps, by default those of training.

    Returns:
        The :class:`AdaptationReport`.

    Raises:
        PolicyError: the model cannot have this policy.

    Example:
        >>> from frostline.meta.maml import MAML
        >>> _ = torch.manual_seed(0)
        >>> from torch.nn import BatchNorm1d, Linear, ReLU, Sequential
        >>> net = Sequential(Linear(4, 8), BatchNorm1d(8), ReLU(), Linear(8, 2))
        >>> learner = MAML(net, inner_lr=0.1, steps=2, policy="frozen")
        >>> report = explain_adaptation(learner, Examples(torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])))
        >>> print(report.notes[0].splitlines()[0])
        batch norm layers normalize with statistics that were never updated (mean 0, variance 1): no normalization
    """
    support = task.support if isinstance(task, Task) else task
    way = task.way if isinstance(task, Task) else int(support.labels.max()) + 1
    chosen = learner.policy_for(policy)
    passes = learner.passes(learner.functional(), chosen, support.inputs)
    seen = walk(learner, passes, learner.values(), support.labels, learner.steps_for(steps), gains=True)
    layers = list(seen.norms[0])
    norm_layers = list(seen.gains[0]) if all(seen.gains) else []
    return AdaptationReport(
        str(chosen),
        learner.rates.start,
        seen.losses,
        {layer: tuple(norms[layer] for norms in seen.norms) for layer in layers},
        {path: tuple(gains[path].largest for gains in seen.gains) for path in norm_layers},
        tuple(_notes(learner, passes, seen, way)),
    )


def _notes(learner: GradientLearner, passes: Passes, seen: Walk, way: int) -> list[str]:
    notes: list[str] = []
    source = passes.policy.inner_source(0)
    if source in FIXED:
        used = passes.kept.of_source(source, 0)
        idle = [path for path, layer in used.items() if not layer.mean.any() and bool((layer.var == 1).all())]
        if idle:
            notes.append(
                "batch norm layers normalize with statistics that were never updated (mean 0, variance 1): no "
                f"normalization\n  found: {name_some([path or 'the model' for path in idle])}, policy {source!r}\n"
                "  fix: policy='support' or 'batch'; statistics of meta-training do not help in the inner steps"
            )
    chance = math.log(way)
    last = seen.losses[-1]
    if learner.loss is functional.cross_entropy and abs(last - chance) < 0.02 * chance:
        notes.append(f"the support loss ends at {last:.3f}, and ln {way} = {chance:.3f}: nothing was learned")
    return notes

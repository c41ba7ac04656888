"""A metric over a loader: the score of each sample, its mean with a bootstrapped interval, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics
from frostline.norms.feed import Feed

Metric: TypeAlias = "Literal['accuracy'] | Callable[[Any, Any], Tensor | float] | None"
# Indices that the bootstrap holds at a time.
_AT_A_TIME = 2_000_000


@dataclass(frozen=True)
class Scores:
    """What a metric gave, sample by sample or batch by batch.

    Attributes:
        values: float64, a score for each sample or each batch, on the CPU.
        weights: how many samples each of them stands for.
        per_sample: whether each is the score of one sample.

    Example:
        >>> scores = Scores(torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 3.0]).double(), per_sample=False)
        >>> scores.mean, scores.samples
        (0.25, 4)
    """

    values: Tensor
    weights: Tensor
    per_sample: bool

    @property
    def mean(self) -> float:
        """The mean over the samples."""
        return float((self.values * self.weights).sum() / self.weights.sum())

    @property
    def samples(self) -> int:
        """How many samples were scored."""
        return int(self.weights.sum())

    def interval(
        self, level: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> tuple[float, float]:
        """The range in which the mean lies, by resampling samples, or batches where there is one score for a batch.

        Args:
            level: share of the resampled means that lie in it.
            resamples: how many are drawn.
            generator: draws them; by default a new one with seed 0, so that the same scores give the same interval.

        Example:
            >>> Scores(torch.ones(5).double(), torch.ones(5).double(), per_sample=True).interval()
            (1.0, 1.0)

        Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile interval).
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        n, means = len(self.values), list[Tensor]()
        weighted, each = self.values * self.weights, max(1, _AT_A_TIME // len(self.values))
        for start in range(0, resamples, each):
            drawn = torch.randint(n, (min(each, resamples - start), n), generator=generator)
            means.append(weighted[drawn].sum(1) / self.weights[drawn].sum(1))
        outside = (1 - level) / 2
        low, high = torch.cat(means).quantile(torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
        return low, high


def paired_difference(
    a: Scores, b: Scores, level: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
) -> tuple[float, float, float]:
    """How much higher ``a`` scores than ``b`` on the same samples: the mean, and its bootstrapped interval.

    Each resample takes the same samples for both, so what makes a sample hard cancels.

    Raises:
        NormsError: the two were not taken on the same batches.

    Example:
        >>> one = Scores(torch.tensor([0.0, 5.0]).double(), torch.ones(2).double(), per_sample=True)
        >>> two = Scores(torch.tensor([1.0, 6.0]).double(), torch.ones(2).double(), per_sample=True)
        >>> paired_difference(two, one)
        (1.0, 1.0, 1.0)
    """
    if a.per_sample != b.per_sample or not torch.equal(a.weights, b.weights):
        raise NormsError(
            f"two scores cannot be compared in pairs: {a.samples} samples in {len(a.values)} scores against "
            f"{b.samples} in {len(b.values)}\n"
            "  fix: a loader that yields the same samples in the same order each time (no shuffle)"
        )
    difference = Scores(a.values - b.values, a.weights, a.per_sample)
    return difference.mean, *difference.interval(level, resamples=resamples, generator=generator)


def score(root: nn.Module, feed: Feed, metric: Metric) -> Scores:
    """Score a model over all batches; to be called inside :func:`~frostline.norms.untouched.untouched`.

    Args:
        root: the unwrapped model, in eval mode.
        feed: the batches, with labels.
        metric: ``"accuracy"`` (the share of positions that are right, where the labels have more dimensions than the
            sample's; a sample whose logits hold a NaN is wrong), or ``metric(output, labels)`` that gives a score for
            each sample, of shape ``(N,)``, or one number for the batch. **Higher is better**: pass a loss as its
            negative, ``lambda output, labels: -F.cross_entropy(output, labels, reduction="none")``.

    Raises:
        NormsError: there is no metric, a batch has no labels, or the metric gave another shape.
        NonFiniteStatistics: the metric gave NaN or infinity.
        NoStatistics: there are no samples.

    Example:
        >>> batches = [(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))]
        >>> score(nn.Identity(), Feed(batches), "accuracy").values.tolist()
        [1.0, 0.0]
    """
    if metric is None:
        raise NormsError('there is no metric to score the model by\n  fix: metric="accuracy", or a callable')
    found: list[Tensor] = []
    counts: list[int] = []
    per_batch = 0
    for number, batch in enumerate(feed):
        output, labels = feed.run(root, batch), feed.labels(batch)
        _require_labels(labels, batch, number)
        samples = _samples(labels)
        if not samples:
            continue
        if metric == "accuracy":
            value = _accuracy(output, labels, number)
        else:
            value = torch.as_tensor(metric(output, _beside(labels, output))).detach()
        if value.shape not in {(samples,), ()}:
            raise NormsError(
                f"batch {number}: the metric gave a tensor of shape {tuple(value.shape)} for {samples} samples\n"
                f"  expected: ({samples},), a score for each sample, or a single number for the batch"
            )
        value = value.to("cpu", torch.float64)
        if not value.isfinite().all():
            raise NonFiniteStatistics(
                f"batch {number}: the metric gave {value[~value.isfinite()].reshape(-1)[0].item()}\n"
                "  fix: check this batch, the model's statistics (frostline.diagnose), and the metric"
            )
        per_batch += value.ndim == 0
        found.append(value.reshape(-1))
        counts.append(samples)
    if not found:
        raise NoStatistics("the loader's batches hold no samples to score\n  fix: check the data set's length")
    if per_batch not in {0, len(found)}:
        raise NormsError(
            f"the metric gave a single number for {per_batch} of {len(found)} batches, and scores of samples for the "
            "rest\n  fix: return a tensor of shape (N,) for a batch of one sample too"
        )
    values = torch.cat(found)
    weights = torch.tensor(counts, dtype=torch.float64) if per_batch else torch.ones_like(values)
    return Scores(values, weights, per_sample=not per_batch)


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of several parts of the data, or of several processes, as one.

    Raises:
        NormsError: the metric scored samples in one part and batches in another.

    Example:
        >>> one = Scores(torch.ones(1).double(), torch.ones(1).double(), per_sample=True)
        >>> joined([one, one]).samples
        2
    """
    if len({each.per_sample for each in parts}) > 1:
        raise NormsError(
            "the metric scored samples in one process and batches in another\n  fix: one kind for all data"
        )
    values, weights = (torch.cat(each) for each in zip(*((p.values, p.weights) for p in parts), strict=True))
    return Scores(values, weights, parts[0].per_sample)


def logits_of(output: Any) -> Tensor | None:
    """What a classifier put out: a tensor, the first of several, or what is called ``logits`` among them.

    Example:
        >>> logits_of({"loss": torch.zeros(()), "logits": torch.zeros(1, 3)}).shape
        torch.Size([1, 3])
    """
    if isinstance(output, Mapping):
        output = cast("Mapping[str, Any]", output).get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = cast("list[Any]", output)[0]
    return output if isinstance(output, Tensor) else None


def _require_labels(labels: Any, batch: Any, number: int) -> None:
    if labels is None:
        raise NormsError(
            f"batch {number} ({type(batch).__name__}) has no labels to score the model by\n"
            "  expected: a tuple or list with the labels last, or a mapping with 'labels', 'label', 'targets', "
            "'target' or 'y'\n"
            "  fix: a labelled loader; without a metric nothing is scored"
        )


def _samples(labels: Any) -> int:
    if isinstance(labels, Tensor):
        return len(labels) if labels.ndim else 1
    if isinstance(labels, Mapping):
        return _samples(next(iter(cast("Mapping[Any, Any]", labels).values())))
    return len(cast("list[Any]", labels)) if isinstance(labels, (list, tuple)) else 1


def _accuracy(output: Any, labels: Any, number: int) -> Tensor:
    logits, labels = logits_of(output), torch.as_tensor(labels)
    if logits is None:
        raise NormsError(
            f"batch {number}: no logits are found in what the model put out ({type(output).__name__})\n"
            "  expected: a tensor, a tuple or list that begins with one, or an object or mapping with 'logits'\n"
            "  fix: metric=lambda output, labels: ... in place of 'accuracy'"
        )
    expected = logits.shape[:1] + logits.shape[2:]
    if logits.ndim < 2 or logits.shape[1] < 2 or labels.shape != expected or labels.is_floating_point():
        raise NormsError(
            f"batch {number}: accuracy needs logits of shape (N, classes) or (N, classes, ...) and whole-numbered "
            f"labels of shape (N,) or (N, ...), found {tuple(logits.shape)} and {tuple(labels.shape)} {labels.dtype}\n"
            "  fix: metric=lambda output, labels: ... in place of 'accuracy'"
        )
    right = (logits.argmax(1) == labels.to(logits.device)) & ~logits.isnan().any(1)
    return right.double().reshape(len(right), -1).mean(1)


def _beside(labels: Any, output: Any) -> Any:
    """The labels on the device of the output, where both are tensors."""
    first: Any = cast("list[Any]", output)[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(labels, Tensor) and isinstance(first, Tensor):
        return labels.to(first.device)
    return labels

"""Whether the data that statistics are estimated on has the classes that they will be used for.

Statistics of three classes out of ten, put into a healthy net, turned 1.5 % error into 18.2 %: they describe what those
classes have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from frostline.errors import name_some
from frostline.findings import Finding, Safety, Severity

# What is reported would come about by chance in fewer than one of a thousand draws of the calibration data.
_BY_CHANCE = 1e-3
# A class counts as over- or under-represented where its share differs by this factor, and by more than chance.
_FACTOR = 2.0


class ClassCounts:
    """How many samples of each class were seen, streaming.

    Attributes:
        counts: by class.
        readable: whether all labels so far were classes: one whole number or one string a sample.
        outputs: how many classes the model tells apart, where that is known.
    """

    def __init__(self) -> None:
        self.counts: dict[int | str, int] = {}
        self.readable = True
        self.outputs: int | None = None

    def add(self, labels: Any) -> None:
        """Take in the labels of a batch."""
        classes = _classes(labels)
        if classes is None:
            self.readable = False
            return
        for each in classes:
            self.counts[each] = self.counts.get(each, 0) + 1

    def merged(self, other: ClassCounts) -> ClassCounts:
        """The counts of both."""
        both = ClassCounts()
        both.counts = dict(self.counts)
        for each, n in other.counts.items():
            both.counts[each] = both.counts.get(each, 0) + n
        both.readable = self.readable and other.readable
        both.outputs = self.outputs or other.outputs
        return both

    @property
    def total(self) -> int:
        """How many samples were counted."""
        return sum(self.counts.values())


def class_shares(*labels: Any) -> dict[int | str, float]:
    """The share of each class in the labels of one or more batches; empty where they are not classes.

    Example:
        >>> class_shares(torch.tensor([0, 0, 1]), torch.tensor([1]))
        {0: 0.5, 1: 0.5}
    """
    counts = ClassCounts()
    for each in labels:
        counts.add(each)
    if not counts.readable:
        return {}
    return {each: n / counts.total for each, n in sorted(counts.counts.items(), key=lambda item: str(item[0]))}


def check_class_balance(calibration: ClassCounts, held_out: ClassCounts | None = None) -> Finding | None:
    """Compare the classes of calibration data with those of held-out data, or with equal shares.

    Without held-out data every class that the model tells apart is expected equally often: as many as it has outputs,
    where the labels are numbers below that, else those that were seen. What may well be chance, given how many samples
    there are, is not reported.

    Args:
        calibration: what the statistics were estimated on.
        held_out: labels of data as the model will meet it.

    Returns:
        A finding: an error where whole classes are missing, a warning where some are more than twice or less than half
        as frequent as they should be; ``None`` where all is well or the labels are not classes.

    Example:
        >>> few, all_ten = ClassCounts(), ClassCounts()
        >>> few.add(torch.arange(90) % 3)
        >>> all_ten.add(torch.arange(90) % 10)
        >>> print(check_class_balance(few, all_ten))
        N309 error: 7 of 10 classes are missing from the data that the statistics were estimated on
          seen: missing: 3, 4, 5, 6, 7, 8, 9; 90 samples, against 90 held-out samples; half the sum of differences 0.70
          fix:  estimate on data of all classes, in the shares in which they will be met
    """
    if not (calibration.readable and calibration.total):
        return None
    known = held_out is not None and held_out.readable and held_out.total > 0
    expected = cast("ClassCounts", held_out).counts if known else _uniform(calibration)
    # Equal shares are known, not estimated: as if from endless data.
    expected_total = float(sum(expected.values())) if known else math.inf
    shares = {each: n / sum(expected.values()) for each, n in expected.items()}
    n = calibration.total
    against = f"against {int(expected_total)} held-out samples" if known else "against equal shares"
    distance = 0.5 * sum(
        abs(shares.get(each, 0.0) - calibration.counts.get(each, 0) / n) for each in {*shares, *calibration.counts}
    )
    figures = f"{n} samples, {against}; half the sum of differences {distance:.2f}"
    missing = [each for each in shares if each not in calibration.counts]
    if missing and _chance_of_missing(missing, shares, calibration, expected_total) < _BY_CHANCE:
        return _finding(
            Severity.ERROR,
            f"{len(missing)} of {len(shares)} classes are missing from the data that the statistics were estimated on",
            f"missing: {name_some([str(each) for each in sorted(missing, key=_order)])}; {figures}",
        )
    skewed = _skewed(calibration, shares, n, expected_total)
    if skewed:
        return _finding(
            Severity.WARNING,
            f"{len(skewed)} of {len(shares)} classes are over- or under-represented in the data that the statistics "
            "were estimated on",
            f"{name_some(skewed)}; {figures}",
        )
    return None


def _finding(severity: Severity, message: str, evidence: str) -> Finding:
    remedy = "estimate on data of all classes, in the shares in which they will be met"
    return Finding("N309", severity, message, where="", evidence=evidence, remedy=remedy, safety=Safety.MANUAL)


def _uniform(calibration: ClassCounts) -> dict[int | str, int]:
    outputs, numbers = calibration.outputs, [each for each in calibration.counts if isinstance(each, int)]
    if outputs is not None and len(numbers) == len(calibration.counts) and 0 <= min(numbers) <= max(numbers) < outputs:
        return dict.fromkeys(range(outputs), 1)
    return dict.fromkeys(calibration.counts, 1)


def _chance_of_missing(
    missing: Sequence[int | str], shares: Mapping[int | str, float], calibration: ClassCounts, of: float
) -> float:
    """A bound on the chance that some set of as many classes is absent, over all such sets (the union bound)."""
    share = sum(shares[each] for each in missing)
    k, m = len({*shares, *calibration.counts}), len(missing)
    sets = math.lgamma(k + 1) - math.lgamma(m + 1) - math.lgamma(k - m + 1)
    return math.exp(min(0.0, sets - _surprise(0, calibration.total, share, of)))


def _skewed(calibration: ClassCounts, shares: Mapping[int | str, float], n: int, of: float) -> list[str]:
    classes = sorted({*shares, *calibration.counts}, key=_order)
    enough = math.log(2 * len(classes) / _BY_CHANCE)
    found: list[str] = []
    for each in classes:
        seen, share = calibration.counts.get(each, 0), shares.get(each, 0.0)
        far = seen / n > _FACTOR * share or share > _FACTOR * seen / n
        if far and _surprise(seen, n, share, of) > enough:
            found.append(f"class {each}: {seen / n:.1%} in place of {share:.1%}")
    return found


def _surprise(seen: int, n: int, share: float, of: float) -> float:
    """Minus the logarithm of a bound on the chance that ``n`` samples hold a class as rarely or as often as ``seen``.

    Where the share is known the count is binomial; where it is that of a sample of size ``of``, the class' samples fall
    on either side as by a coin, whatever the share. Of both the tail is at most ``exp(-n KL)`` (Chernoff).

    Source: Hoeffding 1963, "Probability inequalities for sums of bounded random variables", equation 2.1.
    """
    if math.isinf(of):
        trials, chance = float(n), share
    else:
        trials, chance = seen + share * of, n / (n + of)
    if not trials:
        return 0.0
    return trials * (_log_ratio(seen / trials, chance) + _log_ratio(1 - seen / trials, 1 - chance))


def _log_ratio(q: float, p: float) -> float:
    if q <= 0:
        return 0.0
    return q * math.log(q / p) if p > 0 else math.inf


def _order(value: int | str) -> tuple[int, int, str]:
    return (0, value, "") if isinstance(value, int) else (1, 0, value)


def _classes(labels: Any) -> list[int | str] | None:
    """One class a sample; ``None`` where the labels are something else, masks, boxes or numbers to regress on."""
    if isinstance(labels, Tensor):
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            return None
        return cast("list[int | str]", labels.to("cpu", torch.int64).tolist())
    if isinstance(labels, (list, tuple)):
        values = cast("list[Any]", labels)
        if all(isinstance(each, (int, str)) for each in values):
            return list(values)
    return None

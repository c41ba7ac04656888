"""Scores of a metric over a loader: per sample and per batch, intervals that cover, errors that say what is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics
from frostline.norms.feed import Feed
from frostline.norms.scores import Scores, joined, logits_of, paired_difference, score


def per_sample(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Scores(values, torch.ones_like(values), per_sample=True)


def batches(*sizes, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, classes, generator=g), torch.randint(classes, (n,), generator=g)) for n in sizes]


def test_accuracy_is_counted_sample_by_sample_whatever_the_batches():
    x, y = batches(50)[0]
    found = score(nn.Identity(), Feed(list(zip(x.split(7), y.split(7), strict=True))), "accuracy")
    assert torch.equal(found.values, (x.argmax(1) == y).double())
    assert found.per_sample
    assert found.samples == 50
    assert found.mean == (x.argmax(1) == y).double().mean().item()


def test_a_score_for_each_sample_and_one_for_the_batch_have_the_same_mean():
    data = batches(8, 3, 5)

    def loss(output, labels):
        return -nn.functional.cross_entropy(output, labels, reduction="none")

    by_sample = score(nn.Identity(), Feed(data), loss)
    by_batch = score(nn.Identity(), Feed(data), lambda output, labels: loss(output, labels).mean())
    plain_float = score(nn.Identity(), Feed(data), lambda output, labels: float(loss(output, labels).mean()))
    assert (len(by_sample.values), len(by_batch.values)) == (16, 3)
    assert by_batch.weights.tolist() == [8, 3, 5]
    assert by_sample.mean == pytest.approx(by_batch.mean, rel=1e-6)  # the batch means are float32
    assert plain_float.mean == pytest.approx(by_batch.mean, rel=1e-12)
    # The naive mean of batch means weighs the batch of three as much as that of eight.
    assert abs(by_batch.values.mean().item() - by_sample.mean) > 1e-3


class Named(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, "more"),
        lambda x: [x],
        lambda x: {"loss": x.sum(), "logits": x},
        lambda x: SimpleNamespace(loss=x.sum(), logits=x),
        lambda x: Named(x, x.sum()),
    ],
    ids=["tensor", "tuple", "list", "mapping", "object", "named tuple"],
)
def test_logits_are_found_in_what_models_put_out(wrap):
    x, y = batches(6)[0]
    assert logits_of(wrap(x)) is x
    found = score(nn.Identity(), Feed([(x, y)], forward=lambda model, batch: wrap(batch[0])), "accuracy")
    assert torch.equal(found.values, (x.argmax(1) == y).double())


def test_accuracy_of_masks_is_the_share_of_positions():
    logits, masks = torch.randn(3, 2, 4, 4), torch.randint(2, (3, 4, 4))
    found = score(nn.Identity(), Feed([(logits, masks)]), "accuracy")
    assert torch.equal(found.values, (logits.argmax(1) == masks).double().mean((1, 2)))


def test_a_nan_among_the_logits_is_no_right_answer():
    # argmax takes a NaN for the largest, so a poisoned net would score one class as right.
    logits = torch.full((4, 3), float("nan"))
    labels = torch.zeros(4, dtype=torch.long)
    assert (logits.argmax(1) == labels).all()
    assert score(nn.Identity(), Feed([(logits, labels)]), "accuracy").mean == 0


def test_empty_batches_are_passed_over():
    x, y = batches(6)[0]
    found = score(nn.Identity(), Feed([(x[:0], y[:0]), (x, y)]), "accuracy")
    assert found.samples == 6
    with pytest.raises(NoStatistics, match="no samples"):
        score(nn.Identity(), Feed([(x[:0], y[:0])]), "accuracy")
    with pytest.raises(NoStatistics, match="yields no batch"):
        score(nn.Identity(), Feed([]), "accuracy")


@pytest.mark.parametrize("batch", [torch.randn(4, 3), (torch.randn(4, 3),), {"input": torch.randn(4, 3)}])
def test_missing_labels_are_an_error_that_says_where_they_are_looked_for(batch):
    with pytest.raises(NormsError, match=r"has no labels.*\n.*the labels last, or a mapping with 'labels'"):
        score(nn.Identity(), Feed([batch], forward=lambda model, batch: torch.randn(4, 3)), "accuracy")


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (None, NormsError, "no metric"),
        (lambda o, y: torch.ones(4, 2), NormsError, r"shape \(4, 2\) for 4 samples"),
        (lambda o, y: torch.ones(3), NormsError, r"shape \(3,\) for 4 samples"),
        (lambda o, y: float("nan"), NonFiniteStatistics, "batch 0: the metric gave nan"),
        (lambda o, y: torch.tensor([0.0, 1.0, float("inf"), 0.0]), NonFiniteStatistics, "the metric gave inf"),
    ],
)
def test_what_a_metric_gives_is_checked(metric, error, words):
    with pytest.raises(error, match=words):
        score(nn.Identity(), Feed(batches(4)), metric)


def test_a_metric_has_to_give_one_kind_of_score():
    kinds = iter([torch.ones(4), 1.0])
    with pytest.raises(NormsError, match="single number for 1 of 2 batches"):
        score(nn.Identity(), Feed(batches(4, 4)), lambda output, labels: next(kinds))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.long)),
        (torch.randn(4), torch.zeros(4, dtype=torch.long)),
        (torch.randn(4, 3), torch.zeros(4, 3)),
        (torch.randn(4, 3), torch.zeros(4)),
    ],
    ids=["one logit", "no classes", "soft labels", "labels to regress on"],
)
def test_accuracy_refuses_what_it_cannot_read(logits, labels):
    with pytest.raises(NormsError, match="accuracy needs logits of shape"):
        score(nn.Identity(), Feed([(logits, labels)]), "accuracy")
    with pytest.raises(NormsError, match="no logits are found"):
        score(nn.Identity(), Feed([(logits, labels)], forward=lambda model, batch: "text"), "accuracy")


def test_the_interval_is_the_same_each_time_and_covers_the_mean():
    scores = per_sample((torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.8).double())
    low, high = scores.interval()
    assert (low, high) == scores.interval()
    assert low < scores.mean < high
    # Binomial: the half width is 1.96 standard errors, to the noise of a thousand resamples.
    error = (scores.mean * (1 - scores.mean) / 400) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    other = scores.interval(generator=torch.Generator().manual_seed(5))
    assert other != (low, high)
    narrow = scores.interval(level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_intervals_cover_the_truth_as_often_as_they_say():
    g = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        low, high = per_sample(torch.randn(60, generator=g, dtype=torch.float64)).interval(resamples=400)
        covered += low <= 0 <= high
    # 200 draws of 95 %: four standard errors are 6.2 points; the percentile interval is a little narrow at n = 60.
    assert 0.95 - 0.07 <= covered / 200 <= 1


def test_a_paired_difference_is_narrower_than_two_intervals():
    g = torch.Generator().manual_seed(0)
    hard = torch.randn(300, generator=g, dtype=torch.float64)
    a, b = per_sample(hard + 0.1 + 0.01 * torch.randn(300, generator=g)), per_sample(hard)
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(a.mean - b.mean)
    assert 0.09 < low < mean < high < 0.11
    # Taken apart, the two intervals overlap and the difference would not be seen.
    assert a.interval()[0] < b.interval()[1]
    assert paired_difference(b, a)[0] == -mean


def test_scores_of_other_samples_are_not_compared():
    with pytest.raises(NormsError, match="cannot be compared in pairs"):
        paired_difference(per_sample([1.0, 2.0]), per_sample([1.0]))
    by_batch = Scores(torch.ones(2).double(), torch.tensor([2.0, 1.0]).double(), per_sample=False)
    with pytest.raises(NormsError, match="cannot be compared in pairs"):
        paired_difference(by_batch, per_sample([1.0, 1.0]))
    with pytest.raises(NormsError, match="samples in one process"):
        joined([by_batch, per_sample([1.0])])

"""Missing and over-represented classes are told from chance, and what are no classes is left alone."""

from __future__ import annotations

import math

import pytest
import torch

from frostline.findings import Severity
from frostline.norms.class_balance import ClassCounts, check_class_balance, class_shares


def counts(labels, outputs=None):
    found = ClassCounts()
    found.add(labels)
    found.outputs = outputs
    return found


def draw(n, classes, seed, shares=None):
    g = torch.Generator().manual_seed(seed)
    weights = torch.ones(classes) if shares is None else torch.tensor(shares)
    return torch.multinomial(weights, n, replacement=True, generator=g)


def test_shares_are_those_of_all_batches_together():
    assert class_shares(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2, 2, 2])) == {0: 0.25, 1: 0.25, 2: 0.5}
    assert class_shares(["ant", "bee", "bee"]) == {"ant": 1 / 3, "bee": 2 / 3}


@pytest.mark.parametrize(
    "labels",
    [torch.rand(8), torch.zeros(8, 4, 4, dtype=torch.long), {"boxes": torch.zeros(8, 4)}, None, [{"boxes": 1}]],
    ids=["numbers", "masks", "mapping", "none", "boxes"],
)
def test_what_is_no_class_is_not_judged(labels):
    assert class_shares(labels) == {}
    assert check_class_balance(counts(labels), counts(draw(90, 10, 0))) is None


def test_three_of_ten_classes_are_an_error_with_and_without_held_out_data():
    three = draw(200, 3, 0)
    for calibration, held_out in ((counts(three), counts(draw(200, 10, 1))), (counts(three, outputs=10), None)):
        finding = check_class_balance(calibration, held_out)
        assert finding is not None
        assert finding.code == "N309"
        assert finding.severity is Severity.ERROR
        assert "7 of 10 classes are missing" in finding.message
        assert "missing: 3, 4, 5, 6, 7, 8, 9" in finding.evidence
    # Nothing says that there are others: neither held-out labels nor the model's outputs.
    assert check_class_balance(counts(three)) is None


def test_the_figures_are_those_of_the_shares():
    finding = check_class_balance(counts(torch.zeros(50, dtype=torch.long)), counts(torch.arange(50) % 2))
    assert finding is not None
    assert finding.evidence == "missing: 1; 50 samples, against 50 held-out samples; half the sum of differences 0.50"


@pytest.mark.parametrize(("n", "classes"), [(50, 10), (500, 10), (1000, 1000), (100, 100)])
@pytest.mark.parametrize("held", [None, 250])
def test_a_fair_draw_is_not_reported(n, classes, held):
    alarms = 0
    for seed in range(100):
        held_out = None if held is None else counts(draw(held, classes, 1000 + seed))
        alarms += check_class_balance(counts(draw(n, classes, seed), outputs=classes), held_out) is not None
    assert alarms <= 1


def test_small_data_that_misses_a_class_by_chance_is_not_reported():
    # Of 20 samples and 10 classes one or two are missing as a rule.
    assert any(len(draw(20, 10, seed).unique()) < 10 for seed in range(5))
    assert all(check_class_balance(counts(draw(20, 10, seed), outputs=10)) is None for seed in range(20))
    # The naive check, is any class missing, would have called most of them.
    assert sum(len(draw(20, 10, seed).unique()) < 10 for seed in range(20)) > 10


def test_a_class_that_is_much_too_frequent_is_a_warning():
    skewed = draw(600, 4, 0, shares=[0.7, 0.1, 0.1, 0.1])
    finding = check_class_balance(counts(skewed), counts(draw(600, 4, 1)))
    assert finding is not None
    assert finding.severity is Severity.WARNING
    assert "4 of 4 classes" in finding.message
    assert f"class 0: {(skewed == 0).double().mean().item():.1%} in place of" in finding.evidence
    # Data that is as skewed where the model is used is as it should be.
    assert check_class_balance(counts(skewed), counts(draw(600, 4, 2, shares=[0.7, 0.1, 0.1, 0.1]))) is None


def test_labels_beyond_the_outputs_are_not_the_classes_of_the_model():
    ids = torch.arange(200)
    assert check_class_balance(counts(ids, outputs=10)) is None


def test_counts_of_processes_add_up():
    a, b = counts(torch.tensor([0, 0])), counts(torch.tensor([0, 1]), outputs=2)
    both = a.merged(b)
    assert both.counts == {0: 3, 1: 1}
    assert both.outputs == 2
    b.add(torch.rand(3))
    assert not a.merged(b).readable


def test_the_bound_on_chance_is_that_of_the_exact_case():
    # One of two classes, in equal shares, missing from 20 samples: 2 * 0.5 ** 20; from 8 samples it may be chance.
    assert check_class_balance(counts(torch.zeros(20, dtype=torch.long), outputs=2)) is not None
    assert 2 * math.pow(0.5, 10) > 1e-3 > 2 * math.pow(0.5, 12)
    missing = [n for n in range(2, 20) if _missing(n)]
    assert missing == list(range(11, 20))


def _missing(n):
    finding = check_class_balance(counts(torch.zeros(n, dtype=torch.long), outputs=2))
    return finding is not None and finding.severity is Severity.ERROR

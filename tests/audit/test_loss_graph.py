"""What a graph says of its loss, against the loss computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from frostline.audit.loss_graph import leaves_of, reduction_of

X = torch.arange(12.0).reshape(4, 3).requires_grad_()
LABELS = torch.tensor([0, 2, 1, -100])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda: F.cross_entropy(X, LABELS), (True, 3, 1.0)),  # the ignored label does not count
        (lambda: F.cross_entropy(X, LABELS) / 4, (True, 3, 0.25)),
        (lambda: 0.5 * (F.cross_entropy(X, LABELS) / 2), (True, 3, 0.25)),
        (lambda: F.cross_entropy(X, LABELS, reduction="sum"), (False, 0, 1.0)),
        (lambda: F.mse_loss(X, torch.zeros(4, 3)), (True, 12, 1.0)),
        (lambda: F.binary_cross_entropy_with_logits(X, torch.zeros(4, 3)), (True, 12, 1.0)),
        (lambda: F.l1_loss(X, torch.zeros(4, 3)).mean(), (True, 1, 1.0)),
        (lambda: X.view(-1).mean(), (True, 12, 1.0)),
        (lambda: X.sum() / 12, (False, 0, 1 / 12)),
        (lambda: X.exp().max(), (None, 0, None)),
        (lambda: F.mse_loss(X, torch.zeros(4, 3)) + X.mean(), (None, 0, None)),
    ],
)
def test_the_reduction_is_read_from_the_graph(loss, expected):
    assert reduction_of([loss()]) == expected


def test_what_has_no_graph_says_nothing():
    assert reduction_of([torch.ones(())]) == (None, 0, None)
    assert reduction_of([]) == (None, 0, None)
    assert reduction_of([X.sum(), X.mean()]) == (None, 0, None)


def test_leaves_are_found_through_views_and_shared_parts_once():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    shared = (a * b).view(1, 2)
    found = list(leaves_of([(shared + shared * a).sum()]))
    assert len(found) == 2
    assert {id(t) for t in found} == {id(a), id(b)}

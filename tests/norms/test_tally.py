"""What one pass showed of one layer, against the same figures taken of all samples at once in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.norms.observe import Seen, sample_statistics
from frostline.norms.tally import KEPT_BATCHES, KEPT_SAMPLES, Scatter, Tally


def seen_of(x, call=0):
    return Seen("bn", call, *sample_statistics(x))


def tally_of(batches):
    tally = Tally()
    for batch in batches:
        tally.add(seen_of(batch))
    return tally


def images(n=60, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(n, channels, 1, 1, generator=generator, dtype=torch.float64) * 2 + 5
    return own + torch.randn(n, channels, 4, 4, generator=generator, dtype=torch.float64)


@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_sample_figures_do_not_depend_on_the_batches(cuts, seed):
    x = images(seed=seed)
    edges = [0, *sorted(cuts), len(x)]
    tally = tally_of([x[a:b] for a, b in pairwise(edges)])
    s = x.mean((2, 3))
    q = (x - x.mean((0, 2, 3), keepdim=True)).square().mean((2, 3))
    assert tally.samples == len(x)
    # Rounding of float64, amplified by the sixty-fold sums: far below 1e-9 of the figures.
    torch.testing.assert_close(tally.sample_var, s.var(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(tally.square_var, q.var(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(tally.moments.mean, x.mean((0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(tally.moments.var(), x.var((0, 2, 3), unbiased=False), rtol=1e-9, atol=0)


def test_rows_are_the_samples_own_figures():
    x = images(20)
    rows = tally_of(x.split(7)).sample_rows()
    q = (x - x.mean((0, 2, 3), keepdim=True)).square().mean((2, 3))
    s = x.mean((2, 3))
    torch.testing.assert_close(rows[:, 3:], q, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows[:, :3] - rows[:, :3].mean(0), s - s.mean(0), rtol=1e-9, atol=1e-12)


def test_batch_figures():
    x = images(32)
    tally = tally_of(x.split(8))
    means = torch.stack([b.mean((0, 2, 3)) for b in x.split(8)])
    variances = torch.stack([b.var((0, 2, 3)) for b in x.split(8)])
    torch.testing.assert_close(tally.batch_means.var, means.var(0))
    torch.testing.assert_close(tally.batch_vars.mean, variances.mean(0))
    torch.testing.assert_close(torch.stack(tally.means), means)
    torch.testing.assert_close(tally.within.mean, torch.stack([b.mean((2, 3)).var(0) for b in x.split(8)]).mean(0))
    assert (tally.batch_samples, tally.positions) == (8, 16)


def test_calls_of_one_forward_pass_are_told_apart():
    tally = Tally()
    tally.add(seen_of(torch.zeros(4, 2)))
    tally.add(seen_of(torch.ones(4, 2), call=1))
    assert [tally.calls[c].mean.tolist() for c in (0, 1)] == [[0, 0], [1, 1]]
    assert tally.moments.var().tolist() == [0.25, 0.25]


def test_memory_does_not_grow_with_the_data():
    tally = tally_of(torch.randn(4000, 2).split(8))
    assert tally.sample_rows().shape == (KEPT_SAMPLES, 4)
    assert len(tally.means) == KEPT_BATCHES
    # Each sample had the same chance: the kept ones come from all parts of the data, not from its beginning alone.
    ramp = tally_of(torch.arange(4000.0)[:, None].split(8)).sample_rows()[:, 0]
    assert ramp.median().item() == pytest.approx(2000, abs=6 * 4000 / (12 * KEPT_SAMPLES) ** 0.5)


def test_scatter_of_one_row_has_no_variance():
    scatter = Scatter()
    scatter.add(torch.ones(1, 3))
    assert scatter.var.tolist() == [0, 0, 0]

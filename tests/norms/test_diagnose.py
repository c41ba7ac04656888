"""The diagnosis as a whole: what it takes, what it leaves alone, what it says."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import frostline as fl
from frostline.errors import DomainError, NonFiniteStatistics, NormsError, NoStatistics
from frostline.norms.feed import Feed
from frostline.norms.look import look

DIGITS = load_digits()
PIXELS = (torch.tensor(DIGITS.images, dtype=torch.float32)[:, None] / 16 - 0.3) / 0.37
LABELS = torch.tensor(DIGITS.target)


def batches(n=12, size=32, seed=0, change=lambda x: x):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, len(PIXELS), (size,), generator=generator) for _ in range(n)]
    return [(change(PIXELS[i]), LABELS[i]) for i in rows]


@pytest.fixture(scope="module")
def trained():
    """A small net that reads the digits, with dropout, by 150 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for images, labels in batches(150, seed=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        schedule.step()
    return net


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def everything(model):
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "buffers": [id(b) for b in model.buffers()],
        "modes": [m.training for m in model.modules()],
        "momenta": [getattr(m, "momentum", None) for m in model.modules()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "rng": (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),
    }


def assert_untouched(model, before):
    after = everything(model)
    assert all(torch.equal(after["state"][k], v) for k, v in before["state"].items())
    assert [after[k] for k in ("buffers", "modes", "momenta", "hooks")] == [
        before[k] for k in ("buffers", "modes", "momenta", "hooks")
    ]
    assert torch.equal(after["rng"][0], before["rng"][0])
    assert (after["rng"][1] == before["rng"][1]).all()
    assert after["rng"][2] == before["rng"][2]


def test_healthy(model):
    report = fl.diagnose(model, batches(), "accuracy")
    assert report.cause == "healthy"
    assert [row.path for row in report.layers] == ["1", "4"]
    assert report.remedies[0].name == "leave it as it is" or not any(r.advice == "apply" for r in report.remedies)
    assert report.counterfactuals[0].metric.value > 0.9


@pytest.mark.parametrize("metric", [None, "accuracy"])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_the_model_is_as_it_was(model, metric, mode):
    model.train(mode != "eval")
    if mode == "mixed":
        model[1].eval()
    before = everything(model)

    class Augmenting:
        def __iter__(self):
            for images, labels in batches(8):
                yield images + torch.randn(images.shape) * random.random() * np.random.rand(), labels

    fl.diagnose(model, Augmenting(), metric)
    assert_untouched(model, before)


@pytest.mark.parametrize("where", ["loader", "model", "metric"])
def test_the_model_is_as_it_was_after_an_error(model, where):
    before = everything(model.train())

    def loader():
        yield from batches(2)
        raise OSError("the disk is gone")

    class Breaking:
        def __iter__(self):
            return loader()

    def metric(output, labels):
        raise ZeroDivisionError

    if where == "model":
        model[3].register_forward_hook(lambda *_: (_ for _ in ()).throw(OSError("in the model")))
        before = everything(model)
    with pytest.raises((OSError, ZeroDivisionError)):
        fl.diagnose(model, Breaking() if where == "loader" else batches(2), metric if where == "metric" else None)
    assert_untouched(model, before)


def test_a_repair_is_measured_on_data_it_did_not_see(model):
    """Statistics lost: re-estimating on the first half of the batches is scored on the second."""
    for layer in (model[1], model[4]):
        layer.running_var.fill_(30.0)
    report = fl.diagnose(model, batches(16), "accuracy")
    best = report.remedies[0]
    assert best.advice == "apply"
    assert best.gain.low > 0.3
    assert {row.name for row in report.counterfactuals} == {"E0", "E2", "E3", "E5"}
    alone = [row for row in report.counterfactuals if row.statistics.endswith(" alone")]
    assert {row.statistics for row in alone} == {"of this data in 1 alone", "of this data in 4 alone"}
    repaired = copy.deepcopy(model)
    fl.recalibrate(repaired, batches(16)[:8], allow_imbalance=True)
    with torch.no_grad():
        hits = [repaired.eval()(x).argmax(1) == y for x, y in batches(16)[8:]]
    # The calibration of the report and of the verb is one: as many hits, to the sample.
    assert best.measured.value == pytest.approx(torch.cat(hits).double().mean().item(), abs=1e-12)


def test_training_data_tells_other_data_from_old_statistics(model):
    def noisy(x):
        generator = torch.Generator().manual_seed(0)
        return 0.8 * x + 0.7 * torch.randn(x.shape, generator=generator)

    report = fl.diagnose(model, batches(change=noisy), "accuracy", train_loader=batches(seed=5))
    assert report.cause == "domain-shift"
    assert [row.name for row in report.counterfactuals][:5] == ["E0", "E1", "E2", "E3", "E5"]


def test_domains_are_scored_each_by_itself(model):
    domains = {"plain": batches(6, seed=2), "negative": batches(6, seed=3, change=lambda x: -x)}
    report = fl.diagnose(model, batches(6), "accuracy", domains)
    named = {row.statistics: row for row in report.counterfactuals}
    assert named["of negative, on negative"].name == "E4"
    assert named["running, on plain"].metric.value > named["running, on negative"].metric.value


def test_the_steps_are_read_from_the_optimizer(model):
    optimizer = torch.optim.Adam(model.parameters())
    for state in model.parameters():
        optimizer.state[state]["step"] = torch.tensor(75.0)
    assert fl.diagnose(model, batches(), optimizer=optimizer).cause == "double-update"
    sgd = torch.optim.SGD(model.parameters())
    assert fl.diagnose(model, batches(), optimizer=sgd).cause == "healthy"


def test_progress_counts_three_passes(model):
    seen: list[tuple[str, int]] = []
    fl.diagnose(model, batches(4), progress=lambda name, batch: seen.append((name, batch)))
    assert len(seen) == 12
    assert [batch for _, batch in seen] == [1, 2, 3, 4] * 3
    assert len({name for name, _ in seen}) == 3


def test_json_and_text(model):
    model[1].running_mean[0] = float("nan")
    report = fl.diagnose(model, batches(4))
    data = json.loads(json.dumps(report.to_json()))
    assert (data["cause"], data["schema_version"]) == ("non-finite", 1)
    assert data["causes"][0]["layers"] == ["1"]
    assert "non-finite (100%)" in str(report)
    assert "<table>" in report._repr_html_()


class TestBadInput:
    def test_no_statistics(self):
        report = fl.diagnose(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), [torch.randn(4, 2)])
        assert (report.cause, report.layers) == ("healthy", ())
        assert "no layer that keeps running statistics" in report.causes[0].evidence

    def test_empty_loader(self, model):
        with pytest.raises(NoStatistics, match="yields no batch"):
            fl.diagnose(model, [])

    def test_an_iterator_cannot_be_gone_over_three_times(self, model):
        with pytest.raises(NormsError, match="list"):
            fl.diagnose(model, iter(batches(2)))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_images_that_are_not_finite(self, model, value):
        def break_one(x):
            x = x.clone()
            x[3, 0, 2, 2] = value
            return x

        before = everything(model)
        with pytest.raises(NonFiniteStatistics, match="layer '1'"):
            fl.diagnose(model, batches(3, change=break_one))
        assert_untouched(model, before)

    def test_one_sample_a_batch(self, model):
        """A convolution still has many values a channel; a layer over rows has one, and is refused."""
        assert fl.diagnose(model, batches(40, size=1)).layers[0].channels == 16
        rows = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
        with pytest.raises(NormsError, match="one value"):
            fl.diagnose(rows, [torch.randn(1, 2) for _ in range(4)])
        assert int(rows[1].num_batches_tracked) == 0
        with pytest.raises(ValueError, match="more than 1 value"):  # the naive way counts a batch that never was
            rows(torch.randn(1, 2))
        assert int(rows[1].num_batches_tracked) == 1

    def test_labels_missing(self, model):
        with pytest.raises(NormsError, match="label"):
            fl.diagnose(model, [x for x, _ in batches(3)], "accuracy")

    def test_one_domain(self, model):
        with pytest.raises(DomainError, match="only one"):
            fl.diagnose(model, batches(2), domains={"photo": batches(2)})

    def test_a_domain_without_samples(self, model):
        with pytest.raises(NoStatistics, match="no batch"):
            fl.diagnose(model, batches(2), domains={"photo": batches(2), "sketch": []})

    def test_all_samples_equal(self, model):
        same = [(torch.ones(8, 1, 8, 8), torch.zeros(8, dtype=torch.long)) for _ in range(4)]
        row = fl.diagnose(model, same).causes[0]
        assert (row.name, row.confidence) == ("healthy", 0.0)
        assert "samples are all equal" in row.evidence

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_precisions(self, model, dtype):
        report = fl.diagnose(model.to(dtype), batches(change=lambda x: x.to(dtype)))
        assert report.cause == "healthy"


def test_the_looks_see_the_same_data_three_times(model):
    """A loader that augments gives each pass the same images, or a layer would be compared with other data."""

    class Augmenting:
        def __iter__(self):
            for images, _ in batches(6):
                yield images + torch.randn(images.shape)

    found = look(model, Feed(Augmenting())).layers["1"]
    # Nothing normalizes before the first layer: all passes see the very same there.
    assert torch.equal(found.batch.moments.mean, found.alone.moments.mean)
    assert found.fit_alone.effect == found.fit_in_eval.effect

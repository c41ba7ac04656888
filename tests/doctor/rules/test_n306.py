"""N306: an input that is scaled otherwise."""

import torch
from planted_loops import marked_line, n306
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N306 warning: the input of net does not look like what 0.1 expects: standard deviation x 72.1, mean off by 64 \
standard deviations
  seen: medians over its channels in the first pass, 800 values a channel
        a factor above 2.5, or 1.5 standard deviations, is another scale, not other data
        first pass at benchmarks/planted_loops/n306.py:{line}  nn.functional.cross_entropy(net(x), y).backward()  # \
<- N306
  at:   benchmarks/planted_loops/n306.py:{line}  nn.functional.cross_entropy(net(x), y).backward()  # <- N306
  fix:  scale the input as the pretrained model's was: compare range (0 to 1, or 0 to 255), mean and standard \
deviation with its recipe"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n306.failing())
    assert [f.code for f in found] == ["N306"]
    line = marked_line(n306.fit, "N306")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.MANUAL)
    assert set(found[0].paths) == {"0.1"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n306.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "the input looks as the statistics of net expect" in found.sound


def test_a_model_that_was_never_trained_expects_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with fl.watch(net) as seen:
        n306.fit(net, lambda x: x, 3)
    assert list(examine(seen)) == []


def test_a_model_whose_statistics_are_young_expects_nothing():
    net = nn.Sequential(n306.pretrained(), nn.Linear(8, 3))
    net[0][1].num_batches_tracked.fill_(5)
    with fl.watch(net) as seen:
        n306.fit(net, lambda x: x, 3)
    assert list(examine(seen)) == []


def test_a_checkpoint_without_counters_is_looked_at():
    net = nn.Sequential(n306.pretrained(), nn.Linear(8, 3))
    net[0][1].num_batches_tracked.zero_()
    with fl.watch(net) as seen:
        n306.fit(net, lambda x: x, 3)
    assert [f.code for f in examine(seen)] == ["N306"]


def test_other_data_at_the_same_scale_is_silent():
    net = nn.Sequential(n306.pretrained(), nn.Linear(8, 3))
    with fl.watch(net) as seen:
        n306.fit(net, lambda x: (x - 100) / 90, 3)
    assert list(examine(seen)) == []

"""N307: statistics that adapt to test data."""

import torch
from planted_loops import marked_line, n307
from torch import nn

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N307 warning: 1 normalization layer of net adapted to the data under test
  seen: 2 passes without gradients in eval mode of the model, the first at benchmarks/planted_loops/n307.py:{use}  \
net(torch.randn(16, 4)).argmax(1)
        statistics that moved meanwhile: 1.running_mean, 1.running_var, 1.num_batches_tracked
        put into train mode by m.train() at benchmarks/planted_loops/n307.py:{line}
  at:   benchmarks/planted_loops/n307.py:{line}  m.train()  # <- N307
  fix:  call net.eval() after that line; or, if it is meant, declare it: contract=Contract(moving=("*running_*", \
"*num_batches_tracked"))"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n307.failing())
    assert [f.code for f in found] == ["N307"]
    line = marked_line(n307.failing, "N307")
    assert str(found[0]) == TEXT.format(line=line, use=line + 3)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.MANUAL)
    assert set(found[0].paths) == {"1"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n307.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "no statistics moved in 2 passes in eval mode" in found.sound


def test_adaptation_that_is_declared_is_right():
    net = n307.make()
    with fl.watch(net, contract=Contract(moving=("*running_*", "*num_batches_tracked"))) as seen:
        n307.fit(net, 3)
        net.eval()
        net[1].train()
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert list(examine(seen)) == []


def test_dropout_that_is_put_back_into_train_mode_moves_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    with fl.watch(net) as seen:
        n307.fit(net, 3)
        net.eval()
        net[2].train()
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert list(examine(seen)) == []


def test_a_model_left_in_train_mode_is_another_mistake():
    net = n307.make()
    with fl.watch(net) as seen:
        n307.fit(net, 3)
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert [f.code for f in examine(seen)] == ["M201"]

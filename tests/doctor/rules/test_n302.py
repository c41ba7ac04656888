"""N302: batch norm without running statistics."""

import torch
from planted_loops import marked_line, n302
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N302 warning: 2 batch norms of a frozen part have no running statistics: outputs depend on the batch in any mode
  seen: running_mean is None in trunk.{{1,4}} (x2)
        aten.native_batch_norm normalized with the batch in eval mode at benchmarks/planted_loops/n302.py:{use}  \
net(torch.randn(16, 4)).argmax(1)
        no mode makes such a layer independent of the other samples of its batch
  at:   benchmarks/planted_loops/n302.py:{line}  m.track_running_stats = False  # <- N302
  fix:  build the layers with track_running_stats=True and put them into eval mode to fix their statistics"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n302.failing())
    assert [f.code for f in found] == ["N302"]
    line = marked_line(n302.failing, "N302")
    assert str(found[0]) == TEXT.format(line=line, use=line - 9)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)
    assert set(found[0].paths) == {"trunk.1", "trunk.4"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n302.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 batch norms of frozen parts have running statistics" in found.sound


def test_layers_that_were_built_so_and_train_are_only_an_info():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with fl.watch(net, optimizer) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            net(torch.randn(16, 4))
    assert [(f.code, f.severity) for f in examine(seen)] == [("N302", Severity.INFO)]

"""N305: a moving average without buffers."""

import copy

import torch
from planted_loops import marked_line, n305
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N305 error: ema follows the parameters of net, but not the statistics of 1 normalization layer
  seen: 5 parameters of ema followed those of net
        3 statistics of ema did not move while those of net did: 1.running_mean, 1.running_var, 1.num_batches_tracked
        used in eval mode at benchmarks/planted_loops/n305.py:{line}  ema(torch.randn(16, 4)).argmax(1)  # <- N305
  at:   benchmarks/planted_loops/n305.py:{line}  ema(torch.randn(16, 4)).argmax(1)  # <- N305
  fix:  copy the buffers too: for a, b in zip(ema.buffers(), net.buffers()): a.copy_(b)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n305.failing())
    assert [f.code for f in found] == ["N305"]
    line = marked_line(n305.failing, "N305")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n305.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "ema followed the statistics of its model too" in found.sound


def test_an_average_of_everything_shrinks_the_vectors_of_spectral_normalization():
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
        ema = copy.deepcopy(net).eval()
        with torch.no_grad():
            for vector in ema.buffers():
                vector.neg_()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            n305.step(net, optimizer)
            with torch.no_grad():
                for a, b in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
                    a.lerp_(b, 0.2)
        with torch.no_grad():
            ema(torch.randn(16, 4))
    found = [f for f in examine(seen) if f.code == "N305"]
    assert [f.message for f in found] == ["2 vectors of spectral normalization in ema lost unit length"]


def test_a_copy_in_train_mode_makes_its_own_statistics():
    with fl.watch() as seen:
        net = n305.make()
        ema = copy.deepcopy(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            n305.step(net, optimizer)
            with torch.no_grad():
                for a, p in zip(ema.parameters(), net.parameters(), strict=True):
                    a.lerp_(p, 0.1)
                ema(torch.randn(16, 4))
    assert "N305" not in [f.code for f in examine(seen)]


def test_a_fixed_copy_is_no_average():
    with fl.watch() as seen:
        net = n305.make()
        reference = copy.deepcopy(net).eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            n305.step(net, optimizer)
            with torch.no_grad():
                reference(torch.randn(16, 4))
    assert list(examine(seen)) == []


def test_a_copy_that_is_used_once_at_the_end_with_initial_statistics():
    with fl.watch() as seen:
        net = n305.make()
        ema = copy.deepcopy(net).eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            n305.step(net, optimizer)
            with torch.no_grad():
                for a, p in zip(ema.parameters(), net.parameters(), strict=True):
                    a.lerp_(p, 0.1)
        with torch.no_grad():
            ema(torch.randn(16, 4))
    found = examine(seen)
    assert [(f.code, f.severity, f.inferred) for f in found] == [("N305", Severity.WARNING, True)]
    assert found[0].message == "ema normalizes with mean 0 and variance 1, after 3 steps that moved those of net"

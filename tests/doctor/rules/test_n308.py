"""N308: spectral normalization that was never iterated."""

import torch
from planted_loops import marked_line, n308
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N308 error: spectral normalization of 2 layers was used before it fitted the weight
  seen: 2: the weight is divided by a norm that is off by 117% of its largest singular value
        no pass in train mode came before: only such a pass iterates the vectors
        used in eval mode at benchmarks/planted_loops/n308.py:{line}  critic(torch.randn(8, 16))  # <- N308
        layers: {{0,2}} (x2)
  at:   benchmarks/planted_loops/n308.py:{line}  critic(torch.randn(8, 16))  # <- N308
  fix:  run a few passes in train mode without gradients before critic.eval(), or use \
torch.nn.utils.parametrizations.spectral_norm, which iterates when it is made"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n308.failing())
    assert [f.code for f in found] == ["N308"]
    line = marked_line(n308.failing, "N308")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {"0", "2"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n308.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "spectral normalization fits the weight in 2 layers" in found.sound


def test_the_newer_spectral_norm_iterates_when_it_is_made():
    torch.manual_seed(0)
    with fl.watch() as seen, torch.no_grad():
        critic = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 1))
        critic.eval()(torch.randn(8, 16))
    assert list(examine(seen)) == []


def test_a_critic_that_was_trained_before_the_watch_is_right():
    critic = n308.make()
    with torch.no_grad():
        for _ in range(15):
            critic.train()(torch.randn(8, 16))
    critic.eval()
    with fl.watch(critic) as seen, torch.no_grad():
        critic(torch.randn(8, 16))
    assert list(examine(seen)) == []

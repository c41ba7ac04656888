"""N304: averaged weights without statistics of their own."""

import pytest
import torch
from planted_loops import marked_line, n304
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N304 error: swa has averaged weights, and 1 normalization layer with statistics of the last weights
  seen: used in eval mode at benchmarks/planted_loops/n304.py:{line}  swa(torch.randn(16, 4)).argmax(1)  # <- N304
        no update_bn and no pass in train mode came before it; statistics are copied, not averaged
        statistics in module.1
  at:   benchmarks/planted_loops/n304.py:{line}  swa(torch.randn(16, 4)).argmax(1)  # <- N304
  fix:  torch.optim.swa_utils.update_bn(train_loader, swa) before it is used"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n304.failing())
    assert [f.code for f in found] == ["N304"]
    line = marked_line(n304.failing, "N304")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {"module.1"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n304.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "statistics were estimated for the averaged weights of swa" in found.sound


@pytest.mark.parametrize("buffers", [True, False])
def test_an_exponential_average_is_at_most_an_info(buffers):
    with fl.watch() as seen:
        net = n304.make()
        ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=buffers)
        n304.fit(net, ema, n304.data())
        ema.eval()
        with torch.no_grad():
            ema(torch.randn(16, 4))
    assert [(f.code, f.severity) for f in examine(seen)] == ([] if buffers else [("N304", Severity.INFO)])


def test_passes_in_train_mode_are_as_good_as_update_bn():
    with fl.watch() as seen:
        net = n304.make()
        swa = AveragedModel(net)
        batches = n304.data()
        n304.fit(net, swa, batches)
        swa.train()
        with torch.no_grad():
            for x, _ in batches:
                swa(x)
        swa.eval()
        with torch.no_grad():
            swa(torch.randn(16, 4))
    assert "N304" not in [f.code for f in examine(seen)]

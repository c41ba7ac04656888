"""N301: normalization layers of one class that were missed."""

import torch
from planted_loops import marked_line, n301
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
N301 error: 1 BatchNorm1d of a frozen part was left in train mode, while every BatchNorm2d is in eval mode
  seen: in eval mode: 1 BatchNorm2d: trunk.1
        in train mode: 1 BatchNorm1d: trunk.5
        statistics moved in it
  at:   benchmarks/planted_loops/n301.py:{line}  m.eval()  # <- N301
  fix:  ask for torch.nn.modules.batchnorm._BatchNorm in place of one class, or frostline.freeze(net, "trunk")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(n301.failing())
    assert [f.code for f in found] == ["N301"]
    line = marked_line(n301.failing, "N301")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {"trunk.5"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(n301.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "normalization layers of all classes are in eval mode in 1 frozen part" in found.sound


def test_parts_that_are_switched_as_a_whole_are_no_matter_of_classes():
    with fl.watch() as seen:
        net = n301.make()
        net.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        net.train()
        n301.fit(net, optimizer, 2)
    assert [f.code for f in examine(seen)] == ["F107"]


def test_a_layer_of_another_class_that_trains_is_right():
    with fl.watch() as seen:
        net = n301.make()
        net.trunk[:3].requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        net.train()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        n301.fit(net, optimizer, 2)
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_the_remedy_in_memory_holds():
    seen = n301.failing()
    assert examine(seen).apply() == ["N301: a hold on 1 normalization layer"]
    net = seen.models[0].live
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    with fl.watch(net, optimizer) as again:
        net.train()
        for m in net.trunk.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        n301.fit(net, optimizer, 2)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []
    assert not net.trunk[5].training

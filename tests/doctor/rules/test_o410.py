"""O410: gradients are clipped while they are still scaled."""

import torch
from planted_loops import marked_line, o410
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o410.py"


def text(line: int) -> str:
    return f"""\
O410 error: gradients are clipped while they are still 65,536 times too large: 4 of 4 calls
  seen: the gradient scaler had scaled by 65,536, and not unscaled before {FILE}:{line}  \
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O410
        a limit of 1 is one of 1.53e-05 for the real gradients: nearly every step is clipped
  at:   {FILE}:{line}  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O410
  fix:  scaler.unscale_(optimizer) before this line"""


def test_it_is_found_with_its_line():
    found = examine(o410.failing())
    assert [f.code for f in found] == ["O410"]
    assert str(found[0]) == text(marked_line(o410.failing, "O410"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o410.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "4 calls of clipping saw gradients of their true size" in found.sound


def train(scaler, clip, steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            clip(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    return seen


def clip_values(parameters, most):
    nn.utils.clip_grad_value_(parameters, most)


def test_values_are_clipped_too():
    found = examine(train(torch.amp.GradScaler("cpu"), clip_values))
    assert [f.code for f in found] == ["O410"]
    assert "3 of 3 calls" in found[0].message


def test_a_scaler_that_is_switched_off_scales_nothing():
    seen = train(torch.amp.GradScaler("cpu", enabled=False), nn.utils.clip_grad_norm_)
    assert list(examine(seen)) == []

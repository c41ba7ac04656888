"""O403: frozen parameters are kept in the optimizer."""

import torch
from planted_loops import marked_line, o403

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o403.py"


def text(line: int) -> str:
    return f"""\
O403 info: optimizer keeps 4 frozen parameters among its 6
  seen: requires_grad=False in trunk: 112 elements
        no gradient at any step: they were passed over, and no state was kept for them
  at:   {FILE}:{line}  optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)  # <- O403
  fix:  nothing has to be done; torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), ...) \
leaves them out"""


def test_it_is_found_with_its_line():
    found = examine(o403.failing())
    assert [f.code for f in found] == ["O403"]
    assert str(found[0]) == text(marked_line(o403.failing, "O403"))
    assert (found[0].severity, found[0].paths) == (
        Severity.INFO,
        ("trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias"),
    )


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o403.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "all 2 parameters of the optimizers are trainable; frozen ones were left out" in found.sound


def test_what_a_hold_keeps_is_not_listed():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o403.Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        fl.freeze(model, "trunk", optimizer=optimizer)
        o403.train(model, optimizer, 3)
    assert list(examine(seen)) == []


def test_what_a_hold_keeps_is_counted_beside_what_is_frozen_by_hand():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o403.Net()
        model.trunk[2].requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        fl.freeze(model, "trunk.0", optimizer=optimizer)
        o403.train(model, optimizer, 3)
    (told,) = examine(seen)
    assert told.message == "optimizer keeps 2 frozen parameters among its 6, beside 2 that a hold keeps"


def test_what_is_thawed_in_the_end_is_not_listed():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o403.Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        o403.train(model, optimizer, 2)
        model.trunk.requires_grad_(True)
        o403.train(model, optimizer, 2)
    assert "O403" not in [f.code for f in examine(seen)]

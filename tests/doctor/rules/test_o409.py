"""O409: the loss is averaged over micro-batches of different sizes."""

import torch
from planted_loops import marked_line, o409
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o409.py"


def text(line: int) -> str:
    return f"""\
O409 warning: one step averages over micro-batches of 8 to 40 values: those of the smallest count 5 times as \
much
  seen: values that the losses of one step averaged over: 8, 40, 16, 32
        uneven in 3 of 3 steps
        each loss is a mean, with the same factor in front
  at:   {FILE}:{line}  (loss / k).backward()  # <- O409
  fix:  sum the loss (reduction="sum") and divide by the number of values of the whole step"""


def test_it_is_found_with_its_line():
    found = examine(o409.failing())
    assert [f.code for f in found] == ["O409"]
    assert str(found[0]) == text(marked_line(o409.failing, "O409"))
    assert (found[0].severity, found[0].paths) == (Severity.WARNING, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o409.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "the micro-batches of 3 steps are of one size each" in found.sound


def test_a_loss_that_cannot_be_read_is_for_information():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for rows in (8, 2):
                x, y = torch.randn(rows, 4), torch.randint(3, (rows,))
                loss = nn.functional.cross_entropy(model(x), y) + 1e-4 * model.weight.square().sum()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("O409", Severity.INFO)]
    assert "rows of the micro-batches of one step: 8, 2" in found[0].evidence


def test_the_last_small_batch_of_an_epoch_is_for_information():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, rows in enumerate((8, 8, 8, 8, 8, 3)):
            x, y = torch.randn(rows, 4), torch.randint(3, (rows,))
            (nn.functional.cross_entropy(model(x), y) / 2).backward()
            if i % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
    assert [(f.code, f.severity) for f in examine(seen)] == [("O409", Severity.INFO)]

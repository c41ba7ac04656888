"""O410: gradients are clipped while they are still scaled."""

from __future__ import annotations

import pytest

CODE = "O410"
SCRIPT = """
import torch
from torch import nn
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
for x, y in loader:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O410
    scaler.step(optimizer)
    scaler.update()
"""
LATE = SCRIPT.replace("    scaler.step", "    scaler.unscale_(optimizer)\n    scaler.step")
TRUE = {
    "script": SCRIPT,
    "unscaled too late": LATE,
    "by value": """
        from torch.nn.utils import clip_grad_value_
        scaler = torch.cuda.amp.GradScaler(enabled=args.amp)
        def train(model, optimizer, loader):
            for batch in loader:
                scaler.scale(model(batch).loss).backward()
                if args.clip is not None:
                    clip_grad_value_(model.parameters(), args.clip)  # <- O410
                scaler.step(optimizer)
                scaler.update()
        """,
    "accumulation": """
        for i, batch in enumerate(loader):
            scaler.scale(model(batch).loss / 4).backward()
            if (i + 1) % 4 == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O410
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        """,
    "either way": """
        for batch in loader:
            scaler.scale(model(batch).loss).backward()
            if by_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O410
            else:
                torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)  # <- O410
            scaler.step(optimizer)
            scaler.update()
        """,
    "trainer": """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.Adam(model.parameters())
                self.scaler = torch.amp.GradScaler()
            def backward(self, loss):
                self.scaler.scale(loss).backward()
            def fit(self, loader):
                for batch in loader:
                    self.backward(self.model(batch).mean())
                    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5)  # <- O410
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
        """,
}
SILENT = {
    "twin": SCRIPT.replace("    torch.nn", "    scaler.unscale_(optimizer)\n    torch.nn"),
    "no scaler": SCRIPT.replace("scaler.scale(loss)", "loss").replace("scaler.step(optimizer)", "optimizer.step()"),
    "the arm without a scaler": """
        for batch in loader:
            if scaler is not None:
                scaler.scale(model(batch).loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            else:
                model(batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        """,
    "unscaled under the same condition": """
        for batch in loader:
            if use_amp:
                scaler.scale(model(batch).loss).backward()
            else:
                model(batch).loss.backward()
            if use_amp:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if use_amp:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        """,
    "clips without a scaler only": """
        for batch in loader:
            if args.amp:
                scaler.scale(model(batch).loss).backward()
            else:
                model(batch).loss.backward()
            if not args.amp:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
        """,
    "behind the step": """
        for batch in loader:
            scaler.scale(model(batch).loss).backward()
            scaler.step(optimizer)
            scaler.update()
            other(batch).sum().backward()
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            optimizer_b.step()
        """,
    "a limit that is scaled too": SCRIPT.replace("1.0)", "1.0 * scaler.get_scale())"),
    "accelerate": """
        for batch in loader:
            accelerator.backward(model(batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        """,
    "lightning": """
        class Net(L.LightningModule):
            def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_it_says(find):
    (found,) = find(LATE, CODE)
    assert found.finding.message == "gradients are clipped while they are still scaled by the gradient scaler"
    assert found.finding.evidence == (
        "line 10 computes scaled gradients\nline 12 unscales them, which is too late\n"
        "line 13 unscales them when it steps"
    )


def test_the_fix_unscales_above_the_clip(fixed):
    after = fixed(SCRIPT, CODE)
    assert after == SCRIPT.replace("    torch.nn", "    scaler.unscale_(optimizer)\n    torch.nn")
    assert fixed(TRUE["either way"], CODE).count("scaler.unscale_(optimizer)\n") == 2


def test_the_fix_moves_a_line_that_comes_too_late(fixed):
    assert fixed(LATE, CODE) == SCRIPT.replace("    torch.nn", "    scaler.unscale_(optimizer)\n    torch.nn")


def test_no_fix_where_a_second_call_would_raise(find):
    text = SCRIPT.replace("    scaler.step(optimizer)", "    if last:\n        scaler.step(optimizer)")
    (found,) = find(text, CODE)
    assert found.fix is None

"""O408: gradient accumulation steps at the wrong micro-batch."""

from __future__ import annotations

import pytest

CODE = "O408"
LOOP = """
import torch
def train(model, loader, optimizer, criterion, accumulation=4):
    for index, (x, y) in enumerate(loader):
        loss = criterion(model(x), y) / accumulation
        loss.backward()
        {test}
            optimizer.step()
            optimizer.zero_grad()
"""
TRUE = {
    "enumerate": LOOP.format(test="if index % accumulation == 0:  # <- O408"),
    "not": LOOP.format(test="if not index % accumulation:  # <- O408"),
    "with the tail": LOOP.format(test="if index % accumulation == 0 or index == len(loader) - 1:  # <- O408"),
    "range": """
        from torch import nn, optim
        net = nn.Linear(2, 2)
        opt = optim.SGD(net.parameters(), lr=0.1)
        for epoch in range(3):
            for i in range(100):
                net(data[i]).sum().backward()
                if i % 8 == 0:  # <- O408
                    opt.step()
                    opt.zero_grad()
        """,
    "tqdm, scaler": """
        import torch
        from tqdm import tqdm
        scaler = torch.amp.GradScaler()
        for i, batch in tqdm(enumerate(loader), total=len(loader)):
            scaler.scale(model(batch).loss).backward()
            if i % args.accum == 0:  # <- O408
                scaler.step(optimizer)
                scaler.update()
        """,
    "method": """
        class Trainer:
            def __init__(self, model):
                self.optimizer = torch.optim.Adam(model.parameters())
                self.model = model
            def epoch(self, loader):
                for step, batch in enumerate(loader):
                    self.model(batch).mean().backward()
                    if step % self.k == 0:  # <- O408
                        self.update()
            def update(self):
                self.optimizer.step()
                self.optimizer.zero_grad()
        """,
}
SILENT = {
    "one later": LOOP.format(test="if (index + 1) % accumulation == 0:"),
    "counts from 1": LOOP.replace("enumerate(loader)", "enumerate(loader, 1)").format(
        test="if index % accumulation == 0:"
    ),
    "only logs": """
        for i, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            if i % 10 == 0:
                print(i)
        """,
    "clears at the start of a window": """
        for i, (x, y) in enumerate(loader):
            if i % 4 == 0:
                optimizer.zero_grad()
            model(x).sum().backward()
        optimizer.step()
        """,
    "steps before the next window": """
        for i, (x, y) in enumerate(loader):
            if i % 4 == 0 and i > 0:
                optimizer.step()
                optimizer.zero_grad()
            model(x).sum().backward()
        """,
    "discriminator every fifth": """
        for i, x in enumerate(loader):
            critic(x).mean().backward()
            optimizer_d.step()
            if i % 5 == 0:
                generator(z).mean().backward()
                optimizer_g.step()
        """,
}


DROPPED = """
for epoch in range(3):
    optimizer.zero_grad()  # <- O408
    for i, (x, y) in enumerate(loader):
        (criterion(model(x), y) / 4).backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
"""


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_moves_the_step_and_is_unsafe(fixed):
    text = LOOP.format(test="if index % accumulation == 0:")
    assert fixed(text, CODE) == text
    assert "if (index + 1) % accumulation == 0:" in fixed(text, CODE, unsafe=True)


def test_a_rest_that_is_cleared_is_information(check):
    (found,) = check(DROPPED, CODE)
    assert (found.finding.severity.value, found.fix) == ("info", None)
    assert found.finding.message == (
        "micro-batches that are left over, fewer than 4, are cleared here before any step uses them"
    )
    assert found.finding.evidence == ("line 7 steps only where (i + 1) % 4 == 0, and nothing steps behind that loop")


@pytest.mark.parametrize(
    "text",
    [
        DROPPED + "    optimizer.step()\n",
        DROPPED.replace("== 0:", "== 0 or i + 1 == len(loader):"),
        DROPPED.replace("    optimizer.zero_grad()  # <- O408\n", ""),
        DROPPED.replace("enumerate(loader)", "zip(range(8), loader)"),
        DROPPED.replace("for epoch in range(3):", "if True:"),
    ],
)
def test_a_rest_that_is_used_or_unknown_is_not(text, find):
    assert find(text, CODE) == []

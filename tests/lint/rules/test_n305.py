"""N305: a moving average of a model leaves out or spoils its buffers."""

from __future__ import annotations

import pytest

CODE = "N305"
SCRIPT = """
import copy
import torch
from torch import nn

net = {net}
ema = copy.deepcopy(net).eval()
for x, y in loader:
    net(x).sum().backward()
    with torch.no_grad():
        for a, p in zip(ema.parameters(), net.parameters()):{mark}
            {update}
        {more}
"""
WITH = "nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))"
MARK = "  # <- N305"


def script(update: str = "a.lerp_(p, 0.1)", more: str = "pass", mark: str = "", net: str = WITH) -> str:
    return SCRIPT.format(update=update, more=more, mark=mark, net=net)


TRUE = {
    "lerp": script(mark=MARK),
    "mul and add": script("a.data.mul_(0.9).add_(p.data, alpha=0.1)", mark=MARK),
    "a sum": script("a.data = 0.9 * a.data + 0.1 * p.data", mark=MARK),
    "copied sum": script("a.copy_(a * 0.9 + p * 0.1)", mark=MARK),
    "augmented": script("a.data *= 0.9; a.data += 0.1 * p.data", mark=MARK),
    "unknown model": script(mark=MARK, net="build()"),
    "loaded once, before": script(mark=MARK).replace("for x, y", "ema.load_state_dict(net.state_dict())\nfor x, y"),
    "a function": """
        def update_ema_variables(model, ema_model, alpha, global_step):
            alpha = min(1 - 1 / (global_step + 1), alpha)
            for ema_param, param in zip(ema_model.parameters(), model.parameters()):  # <- N305
                ema_param.data.mul_(alpha).add_(1 - alpha, param.data)
        """,
    "a class": """
        import copy
        class EMA:
            def __init__(self, model, decay=0.999):
                self.ema = copy.deepcopy(model)
                self.decay = decay
            def update(self, model):
                for (_, a), (_, p) in zip(self.ema.named_parameters(), model.named_parameters()):  # <- N305
                    a.data.mul_(self.decay).add_(p.data, alpha=1 - self.decay)
        """,
    "a teacher that is tested": """
        import lightning as L
        class Lit(L.LightningModule):
            def __init__(self, net):
                super().__init__()
                self.student, self.teacher = net, copy.deepcopy(net)
                self.teacher.eval()
            def on_train_batch_end(self, *_):
                for q, k in zip(self.student.parameters(), self.teacher.parameters()):  # <- N305
                    k.data.mul_(0.99).add_(q.data, alpha=0.01)
        """,
    "with strict and enumerate": """
        for i, (a, p) in enumerate(zip(ema_net.parameters(), net.parameters(), strict=True)):  # <- N305
            a.data = decay * a.data + (1 - decay) * p.data
        """,
}
SILENT = {
    "buffers copied": script(more="for a, b in zip(ema.buffers(), net.buffers()): a.copy_(b)"),
    "whole state": script(more="ema.load_state_dict(net.state_dict())"),
    "statistics by name": script(more="ema[1].running_mean.copy_(net[1].running_mean)"),
    "plain copy": script("a.data.copy_(p.data)"),
    "no statistics": script(net="nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))"),
    "a transformer": script(net='timm.create_model("vit_base_patch16_224")'),
    "trains too": script(more="ema.train()"),
    "states": """
        for a, p in zip(ema.state_dict().values(), model.state_dict().values()):
            a.mul_(0.9).add_(p, alpha=0.1)
        """,
    "target network": """
        def soft_update(target, source, tau):
            for t, s in zip(target.parameters(), source.parameters()):
                t.data.copy_(t.data * (1.0 - tau) + s.data * tau)
        """,
    "momentum encoder": """
        class MoCo(nn.Module):
            def _momentum_update(self):
                for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters()):
                    k.data = k.data * self.m + q.data * (1.0 - self.m)
        """,
    "a shadow of one model": """
        for name, p in model.named_parameters():
            shadow[name] = 0.9 * shadow[name] + 0.1 * p.data
        """,
    "a loss between two": """
        for a, p in zip(ema.parameters(), model.parameters()):
            loss = loss + (a * p).sum()
        """,
    "a class with buffers elsewhere": """
        class EMA:
            def update(self, model):
                for a, p in zip(self.ema.parameters(), model.parameters()):
                    a.data.mul_(0.9).add_(p.data, alpha=0.1)
                self.copy_buffers(model)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_the_fix_copies_the_buffers_and_is_unsafe(fixed):
    text = "for a, p in zip(ema.parameters(), model.parameters()):\n    a.data.lerp_(p.data, 0.01)\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == (
        f"{text}for ema_buffer, buffer in zip(ema.buffers(), model.buffers()):\n    ema_buffer.copy_(buffer)\n"
    )


@pytest.mark.parametrize(
    ("name", "severity", "inferred"), [("lerp", "error", False), ("unknown model", "warning", True)]
)
def test_how_bad_it_is(name, severity, inferred, find):
    (found,) = find(TRUE[name], CODE)
    assert (found.finding.severity.value, found.finding.inferred) == (severity, inferred)


def test_what_it_says(find):
    (found,) = find(TRUE["a function"], CODE)
    assert found.finding.message == "ema_model follows the parameters of model, and not its buffers"
    assert found.finding.evidence == (
        "whether model has buffers is not known; ema_model is taken for an average by its name"
    )

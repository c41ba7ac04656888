"""N303: a normalization layer uses the batch in eval mode, hard-coded."""

from __future__ import annotations

import pytest

CODE = "N303"
NORM = """
import torch
import torch.nn.functional as F
from torch import nn

class Norm(nn.Module):
    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        {line}
"""
TRUE = {
    "by name": NORM.format(line="return F.batch_norm(x, mean, var, self.weight, self.bias, training=True)  # <- N303"),
    "by place": NORM.format(line="return F.batch_norm(x, mean, var, None, None, True, 0.1)  # <- N303"),
    "all by name": NORM.format(
        line="return nn.functional.batch_norm(x, running_mean=mean, running_var=var, training=True)  # <- N303"
    ),
    "instance norm": NORM.format(line="return F.instance_norm(x, self.running_mean, self.running_var)  # <- N303"),
    "declared": NORM.format(line="return F.batch_norm(x, None, None, training=True)  # <- N303"),
    "meta-learning by hand": """
        from torch.nn.functional import batch_norm
        def functional_forward(x, weights):
            x = batch_norm(x, None, None, weights["bn.scale"], weights["bn.bias"], True)  # <- N303
            return x
        """,
    "a function with statistics": """
        def block(x, params, stats):
            return F.batch_norm(x, stats["mean"], stats["var"], params["g"], params["b"], training=True)  # <- N303
        """,
    "a function that is told": """
        def block(x, mean, var, training):
            return F.batch_norm(x, mean, var, training=True)  # <- N303
        """,
    "MAML++": """
        class MetaBatchNormLayer(nn.Module):
            def forward(self, input, num_step, params=None, training=False, backup_running_statistics=False):
                output = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias,  # <- N303
                                      training=True, momentum=self.momentum, eps=self.eps)
                return output
        """,
    "Lightning": """
        import lightning as L
        class Lit(L.LightningModule):
            def forward(self, x):
                return F.batch_norm(x, self.mean, self.var, training=True)  # <- N303
        """,
}
SILENT = {
    "told": NORM.format(line="return F.batch_norm(x, mean, var, self.weight, self.bias, training=self.training)"),
    "told by place": NORM.format(line="return F.batch_norm(x, mean, var, None, None, self.training)"),
    "left out": NORM.format(line="return F.batch_norm(x, mean, var)"),
    "off": NORM.format(line="return F.batch_norm(x, mean, var, training=False)"),
    "by the mode": NORM.format(line="if self.training: return F.batch_norm(x, mean, var, training=True)"),
    "standardized weight": NORM.format(
        line="w = F.batch_norm(self.weight.view(1, 8, -1), None, None, training=True); return F.conv2d(x, w)"
    ),
    "adaptive instance norm": """
        class AdaIN(nn.Module):
            def forward(self, x):
                b, c = x.size(0), x.size(1)
                mean, var = self.running_mean.repeat(b), self.running_var.repeat(b)
                flat = x.contiguous().view(1, b * c, *x.size()[2:])
                return F.batch_norm(flat, mean, var, self.w, self.b, True, self.momentum).view(b, c, -1)
        """,
    "plain instance norm": NORM.format(line="return F.instance_norm(x, weight=self.weight, bias=self.bias)"),
    "instance norm that is told": NORM.format(line="return F.instance_norm(x, mean, var, None, None, self.training)"),
    "starred": NORM.format(line="return F.batch_norm(x, *self.statistics, training=True)"),
    "another function": "x = mine.batch_norm(x, mean, var, training=True)",
    "planted twin": """
        class SoundNorm(nn.Module):
            def forward(self, x):
                mean, var = self.running_mean, self.running_var
                return F.batch_norm(x, mean, var, self.weight, self.bias, training=self.training)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("line", "after"),
    [
        (
            "return F.batch_norm(x, mean, var, training=True)",
            "return F.batch_norm(x, mean, var, training=self.training)",
        ),
        (
            "return F.batch_norm(x, mean, var, None, None, True)",
            "return F.batch_norm(x, mean, var, None, None, self.training)",
        ),
    ],
)
def test_the_fix_passes_the_mode(line, after, fixed):
    assert fixed(NORM.format(line=line), CODE) == NORM.format(line=after)


def test_instance_norm_is_mended_only_if_asked(fixed):
    text = NORM.format(line="return F.instance_norm(x, mean, var)")
    assert fixed(text, CODE) == text
    after = NORM.format(line="return F.instance_norm(x, mean, var, use_input_stats=self.training)")
    assert fixed(text, CODE, unsafe=True) == after


def test_without_statistics_it_is_an_info_and_has_no_fix(find):
    (found,) = find(TRUE["meta-learning by hand"], CODE)
    assert (found.finding.severity.value, found.fix) == ("info", None)
    assert found.finding.message == (
        "batch_norm() without running statistics: it normalizes with the batch in eval mode too"
    )


def test_what_it_says(find):
    (found,) = find(TRUE["by name"], CODE)
    assert (
        found.finding.message
        == "batch_norm() normalizes with the batch in eval mode too: training is True in both modes"
    )
    assert found.finding.evidence == "running statistics are passed, mean, and never used"
    assert found.finding.severity.value == "error"

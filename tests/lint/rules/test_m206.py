"""M206: attention drops in eval mode too."""

from __future__ import annotations

import pytest

CODE = "M206"
MODULE = """
import torch
import torch.nn.functional as F
from torch import nn

class Attention(nn.Module):
    def __init__(self, dropout=0.1):
        super().__init__()
        self.dropout = dropout
        self.layer = nn.Dropout(dropout)

    def forward(self, q, k, v):
        {line}
        return x
"""
CALL = "x = F.scaled_dot_product_attention(q, k, v, dropout_p={rate})"
TRUE = {
    "literal": MODULE.format(line=CALL.format(rate="0.1") + "  # <- M206"),
    "attribute": MODULE.format(line=CALL.format(rate="self.dropout") + "  # <- M206"),
    "rate of a layer": MODULE.format(line=CALL.format(rate="self.layer.p") + "  # <- M206"),
    "fifth argument": MODULE.format(line="x = F.scaled_dot_product_attention(q, k, v, None, 0.2)  # <- M206"),
    "through a name": MODULE.format(line=f"p = self.dropout; {CALL.format(rate='p')}  # <- M206"),
    "flash": """
        from flash_attn import flash_attn_func
        class Attention(torch.nn.Module):
            def attend(self, q, k, v):
                return flash_attn_func(q, k, v, dropout_p=0.1, causal=True)  # <- M206
        """,
    "flash, by place": """
        from flash_attn.flash_attn_interface import flash_attn_qkvpacked_func as attend
        class Attention(torch.nn.Module):
            def forward(self, qkv):
                return attend(qkv, 0.1)  # <- M206
        """,
    "xformers": """
        import xformers.ops as xops
        class Attention(torch.nn.Module):
            def forward(self, q, k, v):
                return xops.memory_efficient_attention(q, k, v, p=0.1)  # <- M206
        """,
    "the whole layer": """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                return F.multi_head_attention_forward(  # <- M206
                    q, k, v, 8, 2, self.w, self.b, None, None, False, self.dropout, self.out, self.out_bias)
        """,
    "a function that a module calls": """
        def attend(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)  # <- M206
        class Attention(nn.Module):
            def forward(self, x):
                return attend(x, x, x)
        """,
    "planted": """
        class Attention(nn.Module):
            def __init__(self, width: int = 8, dropout: float = 0.1) -> None:
                super().__init__()
                self.qkv = nn.Linear(width, 3 * width)
                self.out = nn.Linear(width, width)
                self.dropout = dropout
            def forward(self, x):
                q, k, v = self.qkv(x).chunk(3, dim=-1)
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)  # <- M206
                return self.out(x)
        """,
}
SILENT = {
    "by the mode": MODULE.format(line=CALL.format(rate="self.dropout if self.training else 0.0")),
    "times the mode": MODULE.format(line=CALL.format(rate="self.dropout * self.training")),
    "through a name": MODULE.format(line=f"p = self.dropout if self.training else 0.0; {CALL.format(rate='p')}"),
    "two values": MODULE.format(line=f"p = 0.0\n        p = self.dropout\n        {CALL.format(rate='p')}"),
    "none": MODULE.format(line=CALL.format(rate="0.0")),
    "left out": MODULE.format(line="x = F.scaled_dot_product_attention(q, k, v)"),
    "under the mode": MODULE.format(line=f"if self.training: {CALL.format(rate='0.1')}"),
    "argument": """
        class Attention(nn.Module):
            def forward(self, q, k, v, dropout_p=0.1):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        """,
    "property": """
        class Attention(nn.Module):
            @property
            def rate(self):
                return 0.1 if self.training else 0.0
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate)
        """,
    "set by train()": """
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.rate = 0.1
            def train(self, mode=True):
                self.rate = 0.1 * mode
                return super().train(mode)
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate)
        """,
    "no module": "x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)",
    "a library of functions": """
        def attend(q, k, v, p):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        """,
    "the whole layer": """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                return F.multi_head_attention_forward(
                    q, k, v, 8, 2, self.w, self.b, None, None, False, 0.1, self.out, None, training=self.training)
        """,
    "planted twin": """
        class CarefulAttention(nn.Module):
            def forward(self, x):
                q, k, v = self.qkv(x).chunk(3, dim=-1)
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
                return self.out(x)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("rate", "after"),
    [
        ("0.1", "0.1 if self.training else 0.0"),
        ("self.dropout", "self.dropout if self.training else 0.0"),
        ("self.layer.p", "self.layer.p if self.training else 0.0"),
    ],
)
def test_the_fix_asks_for_the_mode(rate, after, fixed):
    assert fixed(MODULE.format(line=CALL.format(rate=rate)), CODE) == MODULE.format(line=CALL.format(rate=after))


def test_what_it_says(find):
    (found,) = find(MODULE.format(line=CALL.format(rate="self.dropout")), CODE)
    assert found.finding.message == (
        "scaled_dot_product_attention() drops in eval mode too: its rate is self.dropout in both modes"
    )
    assert found.finding.evidence == "self.dropout is set on line 9, once for both modes"
    assert found.finding.remedy == "self.dropout if self.training else 0.0"

"""F118: reentrant checkpointing behind a frozen part cuts off the gradients."""

from __future__ import annotations

import pytest

CODE = "F118"
FREEZES = "model.embed.requires_grad_(False)\n"
TRUE = {
    "from import": """
        from torch.utils.checkpoint import checkpoint
        y = checkpoint(block, x)  # <- F118
        """,
    "module": """
        import torch.utils.checkpoint as cp
        y = cp.checkpoint(block, x, preserve_rng_state=False)  # <- F118
        """,
    "from utils": """
        from torch.utils import checkpoint
        y = checkpoint.checkpoint(block, x)  # <- F118
        z = checkpoint.checkpoint_sequential(blocks, 2, x)  # <- F118
        """,
    "in a module": """
        import torch
        from torch import nn
        class Net(nn.Module):
            def forward(self, x):
                for layer in self.layers:
                    x = torch.utils.checkpoint.checkpoint(  # <- F118
                        layer,
                        x,
                    )
                return x
        """,
    "True behind a frozen part": """
        from torch.utils.checkpoint import checkpoint
        def forward(self, ids):
            return checkpoint(self.block, self.embed(ids), use_reentrant=True)  # <- F118
        def train(model):
            model.embed.requires_grad_(False)
        """,
    "transformers": """
        import transformers
        model = transformers.AutoModel.from_pretrained("gpt2")
        for p in model.parameters():
            p.requires_grad = False
        model.gradient_checkpointing_enable()  # <- F118
        """,
}
# Of a line that spans several, the end is marked.
SILENT = {
    "False": "from torch.utils.checkpoint import checkpoint\ny = checkpoint(block, x, use_reentrant=False)\n",
    "True, and nothing is frozen": (
        "from torch.utils.checkpoint import checkpoint\ny = checkpoint(block, x, use_reentrant=True)\n"
    ),
    "decided elsewhere": "from torch.utils.checkpoint import checkpoint\ny = checkpoint(block, x, **options)\n",
    "by a flag": "from torch.utils.checkpoint import checkpoint\ny = checkpoint(block, x, use_reentrant=flag)\n",
    "another checkpoint": "from timm.models import checkpoint\ny = checkpoint(block, x)\n",
    "own function": "def checkpoint(f, x):\n    return f(x)\ny = checkpoint(block, x)\n",
    "inputs that require gradients": (
        "from torch.utils.checkpoint import checkpoint\nmodel.embed.requires_grad_(False)\n"
        "model.enable_input_require_grads()\ny = checkpoint(block, x, use_reentrant=True)\n"
    ),
    "transformers, with arguments": (
        "model.embed.requires_grad_(False)\n"
        'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})\n'
    ),
    "transformers, nothing is frozen": "model.gradient_checkpointing_enable()\n",
    "transformers, another model is frozen": "teacher.requires_grad_(False)\nmodel.gradient_checkpointing_enable()\n",
    "saves a checkpoint": "trainer.save_checkpoint('last.ckpt')\ncheckpoint(model, x)\n",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_a_choice_left_open_is_a_warning_and_behind_a_frozen_part_an_error(find):
    (found,) = find(TRUE["from import"], CODE)
    assert found.finding.severity.value == "warning"
    assert found.finding.message == (
        "checkpoint(...) without use_reentrant is reentrant: behind a frozen part it cuts off gradients"
    )
    (found,) = find("import torch\n" + FREEZES + "y = torch.utils.checkpoint.checkpoint(model.block, x)\n", CODE)
    assert found.finding.severity.value == "error"
    assert found.finding.evidence == (
        "torch up to 2.13 takes True where use_reentrant is not given, with a warning\n"
        "line 2 freezes a part: where no input requires a gradient, all inside gets none"
    )


def test_the_installed_torch_is_reentrant_by_default():
    import inspect

    import torch
    from torch.utils.checkpoint import checkpoint

    assert inspect.signature(checkpoint).parameters["use_reentrant"].default is None
    layer = torch.nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="use_reentrant parameter should be passed explicitly"):  # noqa: SIM117
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
            assert not checkpoint(layer, torch.ones(1, 2)).requires_grad
    assert checkpoint(layer, torch.ones(1, 2), use_reentrant=False).requires_grad


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("checkpoint(block, x)", "checkpoint(block, x, use_reentrant=False)"),
        ("checkpoint(\n    block,\n    x,\n)", "checkpoint(\n    block,\n    x, use_reentrant=False,\n)"),
        ("checkpoint(block, x, use_reentrant=True)", "checkpoint(block, x, use_reentrant=False)"),
        (
            "model.gradient_checkpointing_enable()",
            'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})',
        ),
    ],
)
def test_the_fix_is_unsafe(before, after, fixed):
    text = f"from torch.utils.checkpoint import checkpoint\n{FREEZES}y = "
    assert fixed(text + before + "\n", CODE) == text + before + "\n"
    assert fixed(text + before + "\n", CODE, unsafe=True) == text + after + "\n"

"""F114: a parameter that was made after freezing is trainable."""

from __future__ import annotations

import pytest

CODE = "F114"
TRUE = {
    "embedding": """
        from torch import nn
        model.encoder.requires_grad_(False)
        model.encoder.embed = nn.Embedding(32_003, 768)  # <- F114
        """,
    "grown": """
        from torch import nn
        def grown(old, rows):
            return nn.Embedding(old.num_embeddings + rows, old.embedding_dim)
        model = Tagger()
        for p in model.encoder.parameters():
            p.requires_grad = False
        model.encoder.word_embeddings = grown(model.encoder.word_embeddings, 2)  # <- F114
        """,
    "vocabulary": """
        import transformers
        model = transformers.AutoModel.from_pretrained("gpt2")
        for p in model.parameters():
            p.requires_grad = False
        model.resize_token_embeddings(len(tokenizer))  # <- F114
        """,
    "in a class": """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self, lm, size):
                super().__init__()
                self.lm = lm
                for param in self.lm.parameters():
                    param.requires_grad = False
                self.lm.resize_token_embeddings(size)  # <- F114
        """,
    "parameter": """
        from torch import nn
        vit = Vit()
        vit.trunk.requires_grad_(False)
        vit.trunk.pos_embed = nn.Parameter(interpolated(vit.trunk.pos_embed))  # <- F114
        """,
    "registered": """
        from torch import nn
        net = nn.Sequential(nn.Linear(2, 2))
        net.requires_grad_(False)
        net[0].register_parameter("weight", nn.Parameter(w))  # <- F114
        """,
    "function that freezes": """
        from torch import nn
        def freeze(module):
            for p in module.parameters():
                p.requires_grad = False
        def main(model):
            freeze(model.backbone)
            model.backbone.tok_embed = nn.Embedding(10, 4)  # <- F114
        """,
}
SILENT = {
    "twin": """
        model.encoder.embed = nn.Embedding(32_003, 768)
        model.encoder.requires_grad_(False)
        """,
    "new head": """
        model.requires_grad_(False)
        model.fc = nn.Linear(512, 10)
        model.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(512, 10))
        """,
    "new first layer": """
        for p in model.backbone.parameters():
            p.requires_grad = False
        model.backbone.conv1 = nn.Conv2d(1, 64, 7)
        """,
    "frozen again": """
        model.encoder.requires_grad_(False)
        model.encoder.embed = nn.Embedding(32_003, 768)
        model.encoder.embed.requires_grad_(False)
        """,
    "said to train": """
        model.encoder.requires_grad_(False)
        model.encoder.embed = nn.Embedding(32_003, 768)
        for p in model.encoder.embed.parameters():
            p.requires_grad = True
        """,
    "adapters and prompts": """
        model.encoder.requires_grad_(False)
        model.encoder.prompt_embed = nn.Embedding(20, 768)
        model.encoder.register_parameter("prompt", nn.Parameter(torch.zeros(20, 768)))
        model.encoder.soft_prompt = nn.Parameter(torch.zeros(20, 768))
        """,
    "frozen as it is made": """
        model.encoder.requires_grad_(False)
        model.encoder.pos_embed = nn.Parameter(new, requires_grad=False)
        """,
    "another part": """
        model.encoder.requires_grad_(False)
        model.decoder.embed = nn.Embedding(32_003, 768)
        """,
    "thawed before": """
        model.requires_grad_(False)
        model.requires_grad_(True)
        model.resize_token_embeddings(10)
        """,
    "grows, then is frozen": """
        model.resize_token_embeddings(10)
        model.requires_grad_(False)
        """,
    "in the other branch": """
        if frozen:
            model.requires_grad_(False)
        else:
            model.resize_token_embeddings(10)
        """,
    "only some are frozen": """
        for name, p in model.named_parameters():
            if "head" not in name:
                p.requires_grad = False
        model.resize_token_embeddings(10)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_says_what_froze_the_part(check):
    (found,) = check(TRUE["embedding"], CODE)
    assert found.finding.message == "model.encoder.embed is made anew after model.encoder was frozen, and trains"
    assert found.finding.evidence == (
        "line 3 freezes model.encoder\nwhat is new has requires_grad=True, whatever stood there before"
    )
    assert found.finding.severity.value == "warning"


def test_of_a_vocabulary_it_says_what_transformers_does(check):
    (found,) = check(TRUE["vocabulary"], CODE)
    assert found.finding.evidence == (
        "line 5 freezes model\n"
        "old versions of transformers make it trainable; version 5 keeps it frozen, random new rows and all"
    )
    assert (found.finding.inferred, found.fix) == (True, None)


def test_the_fix_freezes_what_is_new_and_is_unsafe(fixed):
    text = "model.encoder.requires_grad_(False)\nmodel.encoder.embed = nn.Embedding(10, 4)\n"
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == text + "model.encoder.embed.requires_grad_(False)\n"

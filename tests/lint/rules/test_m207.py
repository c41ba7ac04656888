"""M207: dropout is active in a frozen part."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "M207"
NET = """
    from torch import nn
    class Encoder(nn.Module):
        def __init__(self, width, rate=0.1):
            super().__init__()
            self.proj = nn.Linear(width, width)
            self.norm = nn.LayerNorm(width)
            self.drop = nn.Dropout({rate})
        def forward(self, x):
            return self.drop(self.norm(self.proj(x)))
    """
LOOP = """
for x, y in loader:
    optimizer.zero_grad()
    criterion(head(encoder(x)), y).backward()
    optimizer.step()
"""
TRUE = {
    "bert": """
        from transformers import BertModel
        encoder = BertModel.from_pretrained("bert-base-uncased")
        for p in encoder.parameters():
            p.requires_grad = False  # <- M207
        encoder.train()
        for x, y in loader:
            criterion(head(encoder(x)), y).backward()
            optimizer.step()
        """,
    "part of a classifier": """
        from transformers import AutoModelForSequenceClassification
        def main(loader, optimizer):
            model = AutoModelForSequenceClassification.from_pretrained("roberta-base", num_labels=2)
            model.roberta.requires_grad_(False)  # <- M207
            for epoch in range(3):
                model.train()
                for batch in loader:
                    model(**batch).loss.backward()
                    optimizer.step()
        """,
    "sequential": """
        import torch
        from torch import nn
        encoder = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8))
        head = nn.Linear(8, 2)
        encoder.requires_grad_(False)  # <- M207
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        encoder.train()
        for x, y in loader:
            nn.functional.cross_entropy(head(encoder(x)), y).backward()
            optimizer.step()
        """,
    "lightning": """
        import lightning as L
        from torch import nn
        class Tagger(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4), 2)
                for p in self.encoder.parameters():
                    p.requires_grad = False  # <- M207
                self.head = nn.Linear(64, 5)
            def training_step(self, batch, batch_idx):
                return self.head(self.encoder(batch)).mean()
        """,
    "trainer": """
        from transformers import GPT2Model
        class Trainer:
            def __init__(self, head, optimizer):
                self.lm = GPT2Model.from_pretrained("gpt2")
                self.lm.requires_grad_(False)  # <- M207
                self.head = head
                self.optimizer = optimizer
            def fit(self, loader):
                self.lm.train()
                self.head.train()
                for x in loader:
                    self.head(self.lm(x)).mean().backward()
                    self.optimizer.step()
        """,
}
SILENT = {
    "pretrained models are in eval mode": """
        from transformers import BertModel
        encoder = BertModel.from_pretrained("bert-base-uncased")
        encoder.requires_grad_(False)
        for x, y in loader:
            criterion(head(encoder(x)), y).backward()
            optimizer.step()
        """,
    "eval after train": """
        from transformers import BertModel
        encoder = BertModel.from_pretrained("bert-base-uncased")
        encoder.requires_grad_(False)
        for epoch in range(3):
            encoder.train()
            encoder.eval()
            for x, y in loader:
                criterion(head(encoder(x)), y).backward()
                optimizer.step()
        """,
    "no dropout": """
        from torch import nn
        encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        encoder.requires_grad_(False)
        encoder.train()
        for x, y in loader:
            criterion(encoder(x), y).backward()
            optimizer.step()
        """,
    "statistics too: F107 speaks": """
        from torch import nn
        encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        encoder.requires_grad_(False)
        encoder.train()
        for x, y in loader:
            criterion(encoder(x), y).backward()
            optimizer.step()
        """,
    "nothing is frozen": """
        from transformers import BertModel
        encoder = BertModel.from_pretrained("bert-base-uncased")
        encoder.train()
        for x, y in loader:
            criterion(encoder(x), y).backward()
            optimizer.step()
        """,
    "adapters train inside": """
        from peft import LoraConfig, get_peft_model
        from transformers import BertModel
        encoder = BertModel.from_pretrained("bert-base-uncased")
        encoder.requires_grad_(False)
        encoder = get_peft_model(encoder, LoraConfig())
        encoder.train()
        for x, y in loader:
            criterion(encoder(x), y).backward()
            optimizer.step()
        """,
    "an unknown encoder": """
        def fit(encoder, loader, optimizer):
            encoder.requires_grad_(False)
            encoder.train()
            for x, y in loader:
                criterion(encoder(x), y).backward()
                optimizer.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize("name", TRUE)
def test_the_rule_on_statistics_is_silent_there(name, find):
    assert find(TRUE[name], "F107") == []


def test_dropout_beside_statistics_is_in_the_evidence_of_the_other_rule(find):
    [found] = find(SILENT["statistics too: F107 speaks"], "F107")
    assert found.finding.evidence.splitlines()[-1] == "its dropout is active too"


def test_a_class_of_another_file_is_read(check):
    text = f"from nets import Encoder\nencoder = Encoder(8)\nencoder.requires_grad_(False)  # <- M207\n{LOOP}"
    assert check(text, CODE, {"nets.py": NET.format(rate="rate")})


def test_a_rate_of_zero_is_no_dropout(find):
    text = f"from nets import Encoder\nencoder = Encoder(8)\nencoder.requires_grad_(False)\n{LOOP}"
    assert find(text, CODE, {"nets.py": NET.format(rate="0.0")}) == []


def test_the_fix_puts_the_part_into_eval_mode(fixed):
    after = fixed(TRUE["part of a classifier"], CODE, unsafe=True)
    assert "        model.train()\n        model.roberta.eval()\n" in after
    assert fixed(after, CODE, unsafe=True) == after


def test_the_message(find):
    [found] = find(TRUE["bert"], CODE)
    assert found.finding.message == "encoder is frozen, but its dropout is active"
    assert (found.finding.severity.value, found.finding.inferred) == ("warning", True)


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/m207.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [31]
    assert find(text, "F107") == []

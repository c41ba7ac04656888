"""C511: a checkpoint that was saved while an adapter was merged."""

import io

import torch
from planted_loops import c511, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C511 error: the checkpoint was saved while 1 adapter was merged into the weights that are saved with it
  seen: merged=True when it was saved: 0
        saved, with the adapter folded in: 0.base.weight
        saved as well, the adapter: 0.lora_a, 0.lora_b
        a model that loads both is not merged, and adds the adapter once more
  at:   benchmarks/planted_loops/c511.py:{line}  torch.save(model.state_dict(), io.BytesIO())  # <- C511
  fix:  unmerge before saving, or save the merged weights alone"""


def test_it_is_found_with_its_line():
    found = examine(c511.failing())
    assert found[0].code == "C511"
    assert [f.code for f in found].count("C511") == 1
    line = marked_line(c511.failing, "C511")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c511.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 adapter not merged when the model was saved" in found.sound


class MergingInEval(torch.nn.Linear):
    """As the first implementation of LoRA does it: `eval()` merges, `train()` takes it out again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.lora_a = torch.nn.Parameter(torch.randn(2, inputs) * 0.1)
        self.lora_b = torch.nn.Parameter(torch.randn(outputs, 2) * 0.1)
        self.merged = False

    def train(self, mode: bool = True):
        super().train(mode)
        if mode is self.merged:
            self.weight.data += (-1 if mode else 1) * (self.lora_b.detach() @ self.lora_a.detach())
            self.merged = not mode
        return self

    def forward(self, x):
        out = super().forward(x)
        return out if self.merged else out + x @ self.lora_a.T @ self.lora_b.T


def trained():
    torch.manual_seed(0)
    model = torch.nn.Sequential(MergingInEval(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_an_eval_that_merges_is_named():
    with fl.watch() as seen:
        model = trained()
        c511.validate(model)
        torch.save(model.state_dict(), io.BytesIO())
    (told,) = [f for f in examine(seen) if f.code == "C511"]
    assert "merged by model.eval() at" in told.evidence
    assert told.remedy == "model.train() before model.state_dict()"


def codes(save) -> list[str]:
    with fl.watch() as seen:
        model = c511.train(2)
        model[0].merge()
        save(model)
    return [f.code for f in examine(seen)]


def test_merged_weights_alone_the_adapter_alone_and_a_pickled_module_are_silent():
    def weights(model):
        torch.save({k: v for k, v in model.state_dict().items() if "lora" not in k}, io.BytesIO())

    def adapter(model):
        torch.save({k: v for k, v in model.state_dict().items() if "lora" in k}, io.BytesIO())

    def module(model):
        torch.save({"weights": list(model.state_dict().values())[:1], "model": model}, io.BytesIO())

    assert "C511" not in codes(weights)
    assert "C511" not in codes(adapter)
    assert "C511" not in codes(module)

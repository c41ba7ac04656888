"""C503: the best state was kept without a copy and moves along."""

from __future__ import annotations

import pytest

CODE = "C503"
SCRIPT = '''"""Trains."""

from __future__ import annotations

import torch

model = torch.nn.Linear(4, 3)
best = 0.0
for epoch in range(9):
    accuracy = train_and_test(model)
    if accuracy > best:
        best, best_state = accuracy, model.state_dict()  # <- C503
model.load_state_dict(best_state)
'''
FUNCTION = """
def fit(model, loader, epochs):
    best_loss, kept = float("inf"), None
    for epoch in range(epochs):
        loss = one_epoch(model, loader)
        if loss < best_loss:
            best_loss = loss
            kept = {kept}
    model.load_state_dict(kept)
    return model
"""
PAIR = """
def fit(model, loader, score):
    best = (0.0, None)
    for epoch in range(9):
        accuracy = one_epoch(model, loader)
        if accuracy > best[0]:
            best = (accuracy, model.state_dict())
    model.load_state_dict(best[1])
"""
TRUE = {
    "in a tuple under one name": PAIR.replace("state_dict())\n    model", "state_dict())  # <- C503\n    model"),
    "in a list under one name": PAIR.replace(
        "(accuracy, model.state_dict())", "[accuracy, model.state_dict()]  # <- C503"
    ),
    "in a tuple that is taken apart": PAIR.replace(
        "state_dict())\n    model.load_state_dict(best[1])",
        "state_dict())  # <- C503\n    _, state = best\n    model.load_state_dict(state)",
    ),
    "script": SCRIPT,
    "where a score is compared": FUNCTION.format(kept="model.state_dict()  # <- C503"),
    "the dict is copied only": FUNCTION.format(kept="model.state_dict().copy()  # <- C503"),
    "a dict of it": FUNCTION.format(kept="dict(model.state_dict())  # <- C503"),
    "early stopping": """
        class EarlyStopping:
            def __call__(self, loss, model):
                if loss < self.lowest:
                    self.lowest = loss
                    self.state = model.state_dict()  # <- C503
            def restore(self, model):
                model.load_state_dict(self.state)
        """,
    "trainer": """
        class Trainer:
            def __init__(self):
                self.model = torch.nn.Linear(2, 2)
            def fit(self, loader):
                for epoch in range(9):
                    score = self.epoch(loader)
                    if self.best_score is None or score > self.best_score:
                        self.best_weights = self.model.state_dict()  # <- C503
                self.model.load_state_dict(self.best_weights)
        """,
    "in a dict": """
        import torchvision
        net = torchvision.models.resnet18()
        for epoch in range(9):
            if validate(net) > top:
                checkpoint = {"epoch": epoch, "net": net.state_dict()}  # <- C503
        torch.save(checkpoint, "best.pt")
        """,
    "moved to where it may be already": """
        for epoch in range(9):
            if evaluate(model) > best:
                best_state = {k: v.cpu() for k, v in model.state_dict().items()}  # <- C503
        model.load_state_dict(best_state)
        """,
}
SILENT = {
    "a copy in a tuple": PAIR.replace("model.state_dict())", "copy.deepcopy(model.state_dict()))"),
    "only the score of a tuple is read": PAIR.replace("model.load_state_dict(best[1])", "print(best[0])"),
    "a tuple that goes into a file at once": PAIR.replace(
        "state_dict())\n    model.load_state_dict(best[1])",
        "state_dict())\n            torch.save(best[1], path)\n    print(best[0])",
    ),
    "twin": SCRIPT.replace("model.state_dict()  #", "copy.deepcopy(model.state_dict())  #"),
    "copied": FUNCTION.format(kept="copy.deepcopy(model.state_dict())"),
    "cloned": FUNCTION.format(kept="{k: v.clone() for k, v in model.state_dict().items()}"),
    "cloned and moved": FUNCTION.format(kept="{k: v.detach().cpu().clone() for k, v in model.state_dict().items()}"),
    "written to a file": """
        for epoch in range(9):
            if evaluate(model) > best:
                torch.save(model.state_dict(), "best.pt")
        """,
    "written to a file at once": """
        for epoch in range(9):
            if evaluate(model) > best:
                best_state = model.state_dict()
                torch.save(best_state, "best.pt")
        """,
    "written to a file in each pass": """
        for epoch in range(9):
            best = {"model": model.state_dict()}
            torch.save(best, path)
        assert best
        """,
    "a checkpoint of each epoch": """
        for epoch in range(9):
            state = {"model": model.state_dict(), "epoch": epoch}
            torch.save(state, path)
        """,
    "a fresh model for each fold": """
        for fold in range(5):
            model = make()
            score = fit(model, fold)
            if score > best:
                best, best_state = score, model.state_dict()
        final.load_state_dict(best_state)
        """,
    "training ends there": """
        for epoch in range(9):
            if evaluate(model) > best:
                best_state = model.state_dict()
                break
        final.load_state_dict(best_state)
        """,
    "no loop": """
        model.load_state_dict(torch.load(path))
        best_state = model.state_dict()
        print(best_state.keys())
        """,
    "compared with a number": """
        for epoch in range(9):
            if epoch > 0:
                state = model.state_dict()
                merge(state)
        use(state)
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_it_says(find):
    (found,) = find(SCRIPT, CODE)
    assert found.finding.message == "best_state is a view of model, not a copy: it moves along with every later step"
    assert (found.finding.severity.value, found.finding.inferred) == ("error", False)
    (found,) = find(TRUE["the dict is copied only"], CODE)
    assert found.finding.evidence == (
        "state_dict() gives the model's own tensors, not copies: each step changes them too\n"
        "model.state_dict().copy() copies the dict, and not the tensors in it"
    )
    (found,) = find(TRUE["moved to where it may be already"], CODE)
    assert found.finding.severity.value == "info"


def test_the_fix_copies_and_imports(fixed):
    assert fixed(SCRIPT, CODE) == SCRIPT.replace("import torch\n", "import copy\nimport torch\n").replace(
        "model.state_dict()  #", "copy.deepcopy(model.state_dict())  #"
    )


def test_the_fix_uses_what_is_imported(fixed):
    text = "from copy import deepcopy\n" + FUNCTION.format(kept="dict(model.state_dict())")
    assert fixed(text, CODE) == text.replace("dict(model.state_dict())", "deepcopy(model.state_dict())", 1)


def test_the_import_stands_below_the_docstring(fixed):
    text = '"""Says what."""\n' + FUNCTION.format(kept="model.state_dict()")
    assert fixed(text, CODE).startswith('"""Says what."""\n\nimport copy\n\ndef fit(')
    text = FUNCTION.format(kept="model.state_dict()")
    assert fixed(text, CODE).startswith("\nimport copy\ndef fit(")


def test_two_in_one_file_share_the_import(fixed):
    text = SCRIPT + FUNCTION.format(kept="model.state_dict()")
    after = fixed(text, CODE)
    assert (after.count("import copy\n"), after.count("copy.deepcopy(")) == (1, 2)


def test_the_fix_clones_what_is_moved(fixed):
    after = fixed(TRUE["moved to where it may be already"], CODE)
    assert "{k: v.cpu().clone() for k, v in model.state_dict().items()}" in after


def test_no_fix_where_the_name_is_taken(find):
    (found,) = find("copy = 3\n" + SCRIPT.replace("from __future__ import annotations\n", ""), CODE)
    assert found.fix is None


def test_in_a_tuple_the_message_names_the_place_and_the_fix_copies_it(find, fixed):
    (found,) = find(PAIR, CODE)
    assert found.finding.message == "best[1] is a view of model, not a copy: it moves along with every later step"
    assert "best = (accuracy, copy.deepcopy(model.state_dict()))" in fixed(PAIR, CODE)

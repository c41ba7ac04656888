"""C510: tensors whose size does not match are left out of the load, and stay what they were made as."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "C510"
TRUE = {
    "script": """
        from transformers import AutoModelForImageClassification
        model = AutoModelForImageClassification.from_pretrained("x", ignore_mismatched_sizes=True)  # <- C510
        model.eval()
        """,
    "positional name": "net = build('vit', ignore_mismatched_sizes=True)  # <- C510",
    "method": """
        class Tagger:
            def __init__(self, name):
                self.model = AutoModel.from_pretrained(name, ignore_mismatched_sizes=True)  # <- C510
        """,
    "function": """
        def load(name, labels):
            return AutoModel.from_pretrained(name, num_labels=labels, ignore_mismatched_sizes=True).cuda()  # <- C510
        """,
    "a trainer behind it": """
        model = AutoModel.from_pretrained("x", ignore_mismatched_sizes=True)  # <- C510
        Trainer(model=model, args=args).train()
        """,
}
SILENT = {
    "asks what was left out": """
        model, info = AutoModel.from_pretrained("x", ignore_mismatched_sizes=True, output_loading_info=True)
        print(info["mismatched_keys"])
        """,
    "off": "model = AutoModel.from_pretrained('x', ignore_mismatched_sizes=False)",
    "a flag": "model = AutoModel.from_pretrained('x', ignore_mismatched_sizes=args.ignore_mismatched_sizes)",
    "only spoken of": "'''Pass ignore_mismatched_sizes=True.'''",
    "a field": "ignore_mismatched_sizes: bool = True",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_is_information_where_the_file_trains(find):
    (alone,), (trained,) = find(TRUE["script"], CODE), find(TRUE["a trainer behind it"], CODE)
    assert alone.finding.severity is Severity.WARNING
    assert trained.finding.severity is Severity.INFO
    assert alone.finding.evidence == "no optimizer, trainer or backward pass in this file"
    assert trained.fix is None

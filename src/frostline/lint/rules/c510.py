"""C510: tensors whose size does not match are left out of the load, and stay what they were made as."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation

# Code that trains: what was left out gets values at least.
_TRAINS = re.compile(
    r"\.backward\(|\.manual_backward\(|Trainer\(|TrainingArguments|\.fit\(|\.train\(\)|optimizer|\.fine_?tune\(", re.I
)


def check(view: FileView) -> Iterator[Violation]:
    """Calls with `ignore_mismatched_sizes=True` that do not ask what was left out."""
    for call in view.nodes(ast.Call):
        given = next((k for k in call.keywords if k.arg == "ignore_mismatched_sizes"), None)
        if given is None or not isinstance(given.value, ast.Constant) or given.value.value is not True:
            continue
        if any(k.arg == "output_loading_info" for k in call.keywords):
            continue
        trains = bool(_TRAINS.search(view.source.text))
        what = (
            "is as it was made until it has been trained" if trains else "stays as it was made: nothing here trains it"
        )
        yield Violation(
            call,
            f"ignore_mismatched_sizes=True: a head of another size is left out of the load, and {what}",
            evidence=(
                "the file trains the model" if trains else "no optimizer, trainer or backward pass in this file",
            ),
            remedy="output_loading_info=True, and see that mismatched_keys names the head alone; "
            "then that its values are finite",
            severity=Severity.INFO if trains else Severity.WARNING,
            inferred=True,
        )


RULE = LintRule(
    code="C510",
    what="Looks for calls with `ignore_mismatched_sizes=True` that do not ask for `output_loading_info`. Where "
    "the file trains a model too, it is information only.",
    why="Every tensor whose size differs is left out, not just the head that was meant: with another "
    "vocabulary, the embeddings too. What is left out holds what it was made as, random values, or "
    "whatever was in memory where the model was made without initialization. It passes every check of keys "
    "and shapes.",
    example="model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=5, "
    "ignore_mismatched_sizes=True)\nmodel.eval()",
    instead="model, info = AutoModelForSequenceClassification.from_pretrained(\n"
    "    name, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True\n)\nprint(info['mismatched_keys'])",
    remedy="Ask for `output_loading_info=True` and look at `mismatched_keys`: the head alone should be there. "
    "Initialize it, see that it is finite, and train it before anything is measured.",
    safety=Safety.MANUAL,
    how_safe="manual: the call gives back a pair then, and what may be left out is for a person to say",
    false_alarms="A new head that is trained afterwards, in this file (then it is information) or in another one.",
    source="transformers PR28122",
    triggers=("ignore_mismatched_sizes",),
    check=check,
)

"""M207: dropout is active in a frozen part."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import eval_below, frozen_in_train_mode, shown
from frostline.lint.rule import LintRule, Violation


def check(view: FileView) -> Iterator[Violation]:
    """Parts that are frozen by their flags alone, run in train mode, and have dropout but no running statistics."""
    for found in frozen_in_train_mode(view):
        # A part with statistics is what F107 speaks of.
        if found.layers.norms is not False or found.layers.drops is not True or found.flag.node is None:
            continue
        part = shown(found.part)
        edits = eval_below(view, found)
        if found.train is not None:
            train = f"line {found.train.line} puts it into train mode"
        else:
            train = "a new module is in train mode, and nothing calls eval()"
        yield Violation(
            found.flag.node,
            f"{part} is frozen, but its dropout is active",
            evidence=(
                f"line {found.flag.line} sets requires_grad of {part}",
                train,
                *((f"the eval() of line {found.undone.line} comes too early",) if found.undone is not None else ()),
            ),
            remedy=f"{part}.eval() after every train(), or frostline.freeze",
            severity=Severity.WARNING,
            edits=edits,
            safety=Safety.UNSAFE if edits else Safety.MANUAL,
            title=f"Put {part} into eval mode after train()" if edits else "",
            inferred=True,
        )


RULE = LintRule(
    code="M207",
    what="Looks for a part whose `requires_grad` is switched off as a whole, that has dropout and no layer with "
    "running statistics, and that runs in train mode.",
    why="A frozen encoder is meant to give the same features for the same input. With dropout they are noisy: the "
    "head learns from worse features than it is tested on, and features that were computed once cannot be kept.",
    example="from transformers import BertModel\nencoder = BertModel.from_pretrained('bert-base-uncased')\n"
    "encoder.requires_grad_(False)\nencoder.train()\nfor x, y in loader:\n    criterion(head(encoder(x)), "
    "y).backward()\n    optimizer.step()",
    instead="from transformers import BertModel\nencoder = BertModel.from_pretrained('bert-base-uncased')\n"
    "encoder.requires_grad_(False)\nencoder.eval()\nfor x, y in loader:\n    criterion(head(encoder(x)), "
    "y).backward()\n    optimizer.step()",
    remedy="Call `eval()` on the part after every `train()`, or freeze it with `frostline.freeze`, which keeps its "
    "mode.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: dropout in a frozen part may be wanted as noise on the features, and training changes",
    false_alarms="Dropout that is wanted as augmentation of the features, and adapters that are trained between "
    "frozen layers: a warning, which `# noqa: M207` silences. Where the part has layers with statistics, too, F107 "
    "speaks instead.",
    source="EDA#9, allennlp#4895",
    triggers=("requires_grad",),
    check=check,
)

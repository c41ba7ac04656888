"""F114: a parameter that was made after freezing is trainable."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.diagnostic import Edit
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.ownership import Ownership
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import ends_its_line
from frostline.lint.values import is_below
from frostline.lint.wrapping import is_elsewhere

# What a frozen part has already, and what is therefore replaced, not added: a prompt or an adapter is meant to train.
_EMBEDS = re.compile(r"embed|^(wte|wpe)$|(word|token|pos|position)_?emb", re.I)
_OWN_PARAMETER = re.compile(r"^(weight|bias|running_\w+|cls_token|pos_embed\w*|position_embedding\w*|pos_embedding)$")
_ADDED = re.compile(r"prompt|lora|adapter|prefix|soft|learnable|new_|extra|delta", re.I)
_EMBEDDINGS = ("torch.nn.Embedding", "torch.nn.EmbeddingBag")


def check(view: FileView) -> Iterator[Violation]:
    """Embeddings and parameters that take the place of frozen ones, and vocabularies that grow behind freezing."""
    for flow in view.flows:
        if not flow.of("flag", "hold"):
            continue
        ownership = Ownership(flow)
        for index, event in enumerate(flow.events):
            if event.what == "renew" or (event.what == "new" and _is_embedding(event)):
                yield from _violation(view, flow, ownership, index)


def _is_embedding(event: Event) -> bool:
    value = event.get("value")
    name = event.path.rpartition(".")[2]
    return value.cls in _EMBEDDINGS and not _ADDED.search(name) and value.copy_of == ""


def _violation(view: FileView, flow: Flow, ownership: Ownership, index: int) -> Iterator[Violation]:
    event = flow.events[index]
    path = ownership.path(event.path)
    how = event.get("how", "module")
    if how in {"register", "parameter"}:
        name = path.rpartition(".")[2]
        if not _OWN_PARAMETER.match(name) or _ADDED.search(path):
            return
    if event.node is None or event.no_grad or not _is_placed_here(event):
        return
    flag = _frozen_before(flow, ownership, index, path, inside=how != "resize")
    if flag is None or _is_settled(flow, ownership, index, path) or _is_told_not_to_train(view, event):
        return
    above = ownership.path(flag.path) or path
    receiver = _receiver(view, event)
    if how == "resize":
        message = f"the vocabulary of {above} grows after it was frozen: its embedding is made anew"
        facts = "old versions of transformers make it trainable; version 5 keeps it frozen, random new rows and all"
        remedy = "grow the vocabulary first, then freeze"
    else:
        message = f"{path} is made anew after {above} was frozen, and trains"
        facts = "what is new has requires_grad=True, whatever stood there before"
        remedy = f"{receiver or path}.requires_grad_(False), or freeze behind this line"
    edit = _edit(view, event, receiver) if how != "resize" else None
    yield Violation(
        event.node,
        message,
        evidence=(f"line {flag.line} freezes {above}", facts),
        remedy=remedy,
        severity=Severity.WARNING,
        edits=(edit,) if edit is not None else (),
        safety=Safety.UNSAFE,
        title="Freeze what is new, too",
        inferred=how == "resize",
    )


def _is_placed_here(event: Event) -> bool:
    """Whether it is put into a model by the line that the event names, and not given a name by a caller."""
    if event.origin or event.get("how") in {"resize", "register"}:
        return True
    node = event.node
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return isinstance(node, ast.Call) or any(
        isinstance(target, ast.Attribute) and target.attr == event.path.rpartition(".")[2] for target in targets
    )


def _frozen_before(flow: Flow, ownership: Ownership, index: int, path: str, *, inside: bool) -> Event | None:
    """What froze the part that something is put into, and all of it, before that; the last one."""
    here = flow.events[index]
    found: Event | None = None
    for event in flow.events[:index]:
        if event.what == "new" and is_below(path, ownership.path(event.path)) and ownership.path(event.path) != path:
            found = None  # the whole is made anew
            continue
        if event.what not in {"flag", "hold"} or is_elsewhere(event, here):
            continue
        above = ownership.path(event.path)
        reaches = is_below(path, above) and (path != above or not inside)
        if event.what == "hold":
            node = event.node
            whole = isinstance(node, ast.Call) and len(node.args) == 1
            found = event if reaches and whole else found
        elif event.get("value") is False and event.whole and reaches and above:
            found = event
        elif event.get("value") is not False and (is_below(path, above) or is_below(above, path)):
            found = None
    if found is None or found.what == "hold":
        return None  # a hold says at the next step that something came
    return found


def _is_settled(flow: Flow, ownership: Ownership, index: int, path: str) -> bool:
    """Whether the flags of what is new are set behind it, to whatever: somebody has thought of them."""
    for event in flow.events[index + 1 :]:
        if event.what == "hold":
            return True
        if event.what == "flag":
            above = ownership.path(event.path)
            if is_below(path, above) or is_below(above, path):
                return True
        if event.what == "unknown" and re.search(r"freez|requires_grad|train\w*_param", str(event.get("name"))):
            return True
    return False


def _is_told_not_to_train(view: FileView, event: Event) -> bool:
    """Whether what is made says that it does not train: ``nn.Parameter(x, requires_grad=False)``, a ``freeze=True``."""
    if event.origin:
        return False
    return any(
        (isinstance(each, ast.keyword) and each.arg in {"requires_grad", "freeze"})
        or (isinstance(each, ast.Attribute) and each.attr == "requires_grad_")
        for each in ast.walk(event.node or view.tree)
    )


def _receiver(view: FileView, event: Event) -> str:
    node = event.node
    if event.origin or not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return ""
    return view.text(node.targets[0])


def _edit(view: FileView, event: Event, receiver: str) -> Edit | None:
    node = event.node
    if not receiver or not isinstance(node, ast.Assign) or not ends_its_line(view, node):
        return None
    return view.line_below(node, f"{receiver}.requires_grad_(False)")


RULE = LintRule(
    code="F114",
    what="Looks for embeddings and parameters that are put into a part behind the line that froze it (a new "
    "`nn.Embedding`, an `nn.Parameter` in the place of `weight` or `pos_embed`, `register_parameter`), and for "
    "`resize_token_embeddings` on a model that was frozen before.",
    why="Freezing is a flag of the tensors that are there at the time. What is made later has a flag of its own: it "
    "trains and drags the rest of a frozen part out of tune. Where `resize_token_embeddings` keeps the old flag, new "
    "rows stay as random as they were made.",
    example="model.encoder.requires_grad_(False)\nmodel.encoder.embed = nn.Embedding(32_003, 768)",
    instead="model.encoder.embed = nn.Embedding(32_003, 768)\nmodel.encoder.requires_grad_(False)",
    remedy="Freeze behind the last change of the model, or freeze the new part too.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: a new part inside of a frozen one may be meant to train",
    false_alarms="An embedding that is to train inside of a frozen part: say so with `requires_grad_(True)` behind "
    "it. Only embeddings and parameters that are known to stand there already are reported: a new head, a new first "
    "layer, prompts and adapters are meant to train, and let be. Silence others with `# noqa: F114`.",
    source="fromage#18, torchtitan#3885; modeling_utils.py of transformers 5 for what keeps the flag",
    triggers=("resize_token_embeddings", "register_parameter", "Embedding", "Parameter("),
    check=check,
)

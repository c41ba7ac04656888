"""Whether a file does meta-learning: tasks with support and query sets, and inner steps that adapt to one of them."""

from __future__ import annotations

import re

from frostline.lint.file_view import FileView

_LIBRARIES = re.compile(r"^\s*(?:import|from)\s+(higher|learn2learn|torchmeta|l2l|betty)\b", re.M)
_METHODS = re.compile(
    r"\b\w*(maml|reptile|meta_?(test|train|learn|batch|step|optim|opt|lr|loss|model)|innerloop_ctx|few_?shot)\w*\b",
    re.I,
)
_INNER = re.compile(
    r"\b\w*(fast_weights|adapted|inner_(loop|steps?|lr|update|opt\w*)|task_lr|update_lr|adapt\w*_steps?|num_adapt\w*)\b",
    re.I,
)
_SETS = (
    re.compile(
        r"\b(x|y|data|images?|labels?)?_?(support|spt)(_|\b)|\bsupport_?(x|y|set|data|images?|labels?)?\b", re.I
    ),
    re.compile(r"\b(x|y|data|images?|labels?)?_?(query|qry)(_|\b)|\bquery_?(x|y|set|data|images?|labels?)?\b", re.I),
)
_GRADIENTS = re.compile(r"autograd\.grad\(|create_graph\s*=\s*True|functional_call\(|innerloop_ctx\(")

HINTS = (
    "higher", "learn2learn", "torchmeta", "l2l", "betty", "inner", "Inner", "INNER", "fast_weights", "adapt",
    "Adapt", "ADAPT", "task_lr", "update_lr", "maml", "MAML", "Maml", "reptile", "Reptile", "meta", "Meta", "META",
    "few", "Few",
)  # fmt: skip
"""Each file that does meta-learning holds one of these."""


def meta_learning_in(view: FileView) -> str:
    """What in a file shows that it does meta-learning; "" where nothing does.

    One hint is not enough, for attention has queries too, and many things are adapted: a library that does nothing else
    counts by itself, the name of a method needs a pair of sets or an inner step beside it.
    """
    text = view.source.text
    library = _LIBRARIES.search(text)
    if library:
        return f"{library[1]} is imported"
    pair = all(pattern.search(text) for pattern in _SETS)
    method, inner = _METHODS.search(text), _INNER.search(text)
    if method and (pair or inner):
        return f"{method[0]} and {(inner or [''])[0] or 'support and query sets'} stand here"
    if inner and (pair or _GRADIENTS.search(text)):
        return f"{inner[0]} stands here"
    return ""

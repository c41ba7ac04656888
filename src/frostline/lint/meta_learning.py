"""Whether a file does meta-learning: tasks with support and query sets, and inner steps that adapt to one of them."""

from __future__ import annotations

import re
from functools import lru_cache

from frostline.lint.file_view import FileView

_LIBRARIES = re.compile(r"^\s*(?:import|from)\s+(higher|learn2learn|torchmeta|l2l|betty)\b", re.M)
# Both are looked for anywhere in a word, in small letters: with the word around them in the pattern, the search would
# try each letter.
_METHODS = re.compile(
    r"maml|reptile|meta_?(?:test|train|learn|batch|step|optim|opt|lr|loss|model)|innerloop_ctx|few_?shot"
)
_INNER = re.compile(
    r"(?:fast_weights|adapted|inner_(?:loop|steps?|lr|update|opt\w*)|task_lr|update_lr|adapt\w*_steps?|num_adapt\w*)\b"
)
_SETS = tuple(
    re.compile(rf"\b(?:x|y|data|images?|labels?)?_?(?:{words})(?:_|\b)|\b{long}_?(?:x|y|set|data|images?|labels?)?\b")
    for words, long in (("support|spt", "support"), ("query|qry", "query"))
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
    return _told(view.source.text)


@lru_cache(maxsize=2)
def _told(text: str) -> str:
    """The same of a text; two rules ask it of each file."""
    library = _LIBRARIES.search(text)
    if library:
        return f"{library[1]} is imported"
    # Patterns that do not mind the case are several times slower.
    small = text.lower()
    method, inner = _METHODS.search(small), _INNER.search(small)
    if not method and not inner:
        return ""
    pair = all(pattern.search(small) for pattern in _SETS)
    shown = text if len(text) == len(small) else small
    if method and (pair or inner):
        beside = _word(shown, inner) if inner else "support and query sets"
        return f"{_word(shown, method)} and {beside} stand here"
    if inner and (pair or _GRADIENTS.search(text)):
        return f"{_word(shown, inner)} stands here"
    return ""


def _word(text: str, found: re.Match[str]) -> str:
    """The whole word that a match lies in."""
    start, end = found.span()
    while start and (text[start - 1].isalnum() or text[start - 1] == "_"):
        start -= 1
    while end < len(text) and (text[end].isalnum() or text[end] == "_"):
        end += 1
    return text[start:end]

"""Where the tensors are inside what a checkpoint file holds, and what their names are without wrappers.

Knows dictionaries and names; knows nothing of files or models. Nothing is chosen without being said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar, cast

from frostline.checkpoint.stored import StoredTensor
from frostline.errors import CheckpointError, name_some, printable
from frostline.state import names

# Most specific first, as the repositories use them.
CONTAINER_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "student",
    "model_state",
    "model_state_dict",
    "state_dict",
    "model",
    "network",
    "net",
    "params",
    "weights",
)
# What wrappers put into names: DataParallel's is also an ordinary name, so `keep` of `strip_wrappers` has a say.
WRAPPER_TOKENS = names.WRAPPER_TOKENS | {"module"}
FLAT_SHARD = "_flat_param"
TOP_LEVEL = "the top level"

Value = TypeVar("Value")


def unwrap(loaded: object, where: str, take: str = "") -> tuple[Mapping[str, object], tuple[str, ...], str]:
    """Go down to the dictionary that holds a model's tensors.

    Args:
        loaded: what the file holds; tensors in it are :class:`~frostline.checkpoint.stored.StoredTensor`.
        where: the file, for messages.
        take: a dotted path that begins with the keys to go down by, where there are several.

    Returns:
        That dictionary, the keys that lead to it, and what is left of ``take`` for the names in it.

    Raises:
        CheckpointError: there is none, or there are several and ``take`` does not choose.
    """
    container: tuple[str, ...] = ()
    while True:
        if not isinstance(loaded, Mapping):
            raise CheckpointError(
                f"{where} holds a {type(loaded).__name__}\n"
                "  expected: a state dict, that is names with tensors, or a dictionary that holds one\n"
                "  fix: save model.state_dict()"
            )
        entries = cast("Mapping[str, Any]", loaded)
        chosen = next((key for key in entries if _leads(take, key) and _holds_tensors(entries[key])), None)
        if chosen is None:
            candidates = _candidates(entries)
            if not candidates:
                raise CheckpointError(
                    f"{where} holds no tensors of a model{_inside(container)}\n"
                    f"  found: {name_some([repr(key) for key in entries]) or 'nothing'}\n"
                    "  fix: save model.state_dict()"
                )
            if len(candidates) > 1:
                named = " and ".join(key if key == TOP_LEVEL else repr(key) for key in candidates)
                keys = [".".join((*container, key)) for key in candidates if key != TOP_LEVEL]
                raise CheckpointError(
                    f"{where} holds tensors in {len(candidates)} places{_inside(container)}: {printable(named)}\n"
                    f"  fix: {' or '.join(f'take={key!r}' for key in keys)}"
                )
            chosen = candidates[0]
        elif chosen != take:
            take = take[len(chosen) + 1 :]
        else:
            take = ""
        if chosen == TOP_LEVEL:
            return entries, container, take
        loaded = entries[chosen]
        container = (*container, chosen)


def _leads(take: str, key: object) -> bool:
    return isinstance(key, str) and (take == key or take.startswith(f"{key}."))


def _candidates(entries: Mapping[Any, object]) -> list[str]:
    """Where a model's tensors may be: under the known keys, at this level, or else under any key."""
    found = [key for key in CONTAINER_KEYS if _holds_tensors(entries.get(key))]
    # A dotted name is a parameter's; a tensor without a dot beside a container is a step count or the like.
    if any(isinstance(value, StoredTensor) and (not found or "." in str(key)) for key, value in entries.items()):
        found.append(TOP_LEVEL)
    return found or [key for key, value in entries.items() if isinstance(key, str) and _holds_tensors(value)]


def strip_wrappers(entries: Mapping[str, Value], *, keep: Collection[str] = ()) -> tuple[dict[str, Value], list[str]]:
    """Take the names that wrappers put in front and between out of dotted names, as whole parts.

    A part stays in all names where taking it out would make two names equal, or leave nothing of a name.

    Args:
        entries: values under their dotted names; left as it is.
        keep: wrapper names that are names of the model itself.

    Returns:
        The values under their shorter names, in the same order, and the wrapper names that were taken out.

    Example:
        >>> strip_wrappers({"module.fc.weight": 1, "module.my_module.bias": 2})
        ({'fc.weight': 1, 'my_module.bias': 2}, ['module'])
        >>> strip_wrappers({"module.weight": 1, "weight": 2})
        ({'module.weight': 1, 'weight': 2}, [])
    """
    present = {part for name in entries for part in name.split(".")}
    tokens = present.intersection(WRAPPER_TOKENS).difference(keep)
    if not tokens:
        return dict(entries), []
    groups: dict[str, list[str]] = {}
    for name in entries:
        groups.setdefault(_without(name, tokens), []).append(name)
    for short, members in groups.items():
        if len(members) > 1 or not short:
            tokens = tokens.difference(part for name in members for part in name.split("."))
    return {_without(name, tokens): value for name, value in entries.items()}, sorted(tokens)


def _without(name: str, tokens: Collection[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in tokens)


def _holds_tensors(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    entries = cast("Mapping[object, object]", value)
    return any(isinstance(inner, StoredTensor) and isinstance(key, str) for key, inner in entries.items()) or any(
        _holds_tensors(entries.get(key)) for key in CONTAINER_KEYS
    )


def _inside(container: tuple[str, ...]) -> str:
    return f", inside {'.'.join(container)!r}" if container else ""

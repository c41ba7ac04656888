"""What a pickle wants to import, read off its instructions; nothing is imported or run.

Serves the message of a refusal and no other purpose: what refuses is torch's own ``weights_only`` reader.
"""

from __future__ import annotations

import pickletools
import re
from typing import IO

UNKNOWN_GLOBAL = "a name that is made up while loading"
# What tensors themselves are made of: never the reason why a file is refused.
_OF_TENSORS = re.compile(
    r"torch\.((cuda\.|storage\.)?\w+Storage|_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2|Size|device|Tensor"
    r"|(b?float|q?u?int|bits|complex)\d\w*|bool|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|(builtins|__builtin__)\.(set|bytearray|complex)"
)


def suspicious_globals(stream: IO[bytes], *, pickles: int = 1) -> list[str]:
    """Name what pickles import beyond what tensors are made of.

    Args:
        stream: where the first pickle begins; it is read on from there.
        pickles: how many follow one another. Damage ends the reading early; what was seen until then counts.

    Returns:
        Dotted names, sorted.

    Example:
        >>> import io, json, pickle
        >>> suspicious_globals(io.BytesIO(pickle.dumps({"a": json.loads})))
        ['json.loads']
    """
    found: set[str] = set()
    for _ in range(pickles):
        if not _walk(stream, found):
            break
    return sorted(name for name in found if not _OF_TENSORS.fullmatch(name))


def is_pickle(stream: IO[bytes]) -> bool:
    """Tell whether the stream begins with one whole pickle."""
    return _walk(stream, set())


def _walk(stream: IO[bytes], found: set[str]) -> bool:
    """Collect the imports of one pickle; false if it is damaged or cut short."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    last = UNKNOWN_GLOBAL
    try:
        for operation, argument, _ in pickletools.genops(stream):
            name = operation.name
            if name in {"GLOBAL", "INST"}:
                found.add(str(argument).replace(" ", "."))
                last = UNKNOWN_GLOBAL
            elif name == "STACK_GLOBAL":
                known = len(strings) >= 2 and UNKNOWN_GLOBAL not in strings[-2:]
                found.add(".".join(strings[-2:]) if known else UNKNOWN_GLOBAL)
                last = UNKNOWN_GLOBAL
            elif name == "MEMOIZE":
                memo[len(memo)] = last
            elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
                memo[int(argument or 0)] = last
            elif name in {"GET", "BINGET", "LONG_BINGET"}:
                last = memo.get(int(argument or 0), UNKNOWN_GLOBAL)
                strings.append(last)
            elif isinstance(argument, str):
                last = argument
                strings.append(last)
            elif name not in {"PROTO", "FRAME"}:
                last = UNKNOWN_GLOBAL
    except (ValueError, EOFError, IndexError, OverflowError, UnicodeDecodeError):
        return False
    return True

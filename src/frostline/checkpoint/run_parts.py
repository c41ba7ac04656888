"""The two parts of a checkpoint that a run of Frostline's own resumes from: its model and its optimizer.

Such a file is flat, as safetensors are: the part stands in front of each name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from frostline.checkpoint.tensor_writer import DIGEST

MODEL = "model/"
OPTIMIZER = "optimizer/"

V = TypeVar("V")


def run_parts(entries: Mapping[str, V], metadata: Mapping[str, str]) -> dict[str, dict[str, V]] | None:
    """What such a checkpoint holds, by part; ``None`` for files of any other making.

    Args:
        entries: under the names in the file.
        metadata: of its header.

    Example:
        >>> run_parts({"model/fc.bias": 1, "optimizer/0/step": 2}, {DIGEST: "..."})
        {'model': {'fc.bias': 1}, 'optimizer': {'0/step': 2}}
        >>> run_parts({"model/fc.bias": 1}, {})
    """
    prefixes = (MODEL, OPTIMIZER)
    is_ours = DIGEST in metadata and any(name.startswith(MODEL) for name in entries)
    if not is_ours or not all(name.startswith(prefixes) for name in entries):
        return None
    parts: dict[str, dict[str, V]] = {}
    for name, value in entries.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    return parts

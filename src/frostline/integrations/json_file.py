"""A result as a file of JSON, beside what the framework itself writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from frostline.durable import replace_file, told


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write a JSON-ready value, whole or not at all; missing folders are made.

    Returns:
        The path.

    Raises:
        StorageFull: the disk is full.
        CannotWrite: the place cannot be written to.
    """
    target = Path(path)
    content = (json.dumps(value, indent=2) + "\n").encode()
    with told(target, len(content), "  fix: free some space, or another path"):
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)
    return target

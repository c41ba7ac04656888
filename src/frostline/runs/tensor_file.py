"""Tensors with a digest, as the bytes of a safetensors file.

Knows tensors and bytes; knows nothing of runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from frostline.checkpoint.tensor_writer import DIGEST, combined_digest
from frostline.errors import CorruptCheckpoint
from frostline.state.digest import digest_all


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Turn tensors into the bytes of a safetensors file.

    Tensors may share memory, lie on any device and be strided; each is stored by itself. They are only read. The same
    tensors and metadata give the same bytes.

    Args:
        tensors: under their names.
        metadata: what is stored beside them; a digest of the tensors is added.
    """
    # Clones, because safetensors refuses tensors that share memory. Bytes for Python to write, because an error of the
    # disk then is an OSError with its number.
    alone = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    content = safetensors.torch.save(alone, {**metadata, DIGEST: combined_digest(digest_all(alone))})
    # The library writes the metadata in an order of chance.
    header = _header(content)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)
    return len(ordered).to_bytes(8, "little") + ordered + content[8 + int.from_bytes(content[:8], "little") :]


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a file that :func:`serialize` made, on the CPU.

    Raises:
        CorruptCheckpoint: it is cut short, or its tensors are not those that were saved.
    """
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise CorruptCheckpoint(
            f"{path} cannot be read\n  cut short or damaged ({len(content):,} bytes): {error}\n  fix: restore it"
        ) from error
    metadata: dict[str, str] = _header(content).get("__metadata__", {})
    expected = metadata.pop(DIGEST, None)
    if expected is not None and expected != combined_digest(digest_all(tensors)):
        raise CorruptCheckpoint(
            f"{path} cannot be read\n  its tensors are not those that were saved\n  fix: restore it"
        )
    return tensors, metadata


def _header(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

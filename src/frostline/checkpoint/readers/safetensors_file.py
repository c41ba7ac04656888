"""Safetensors: eight bytes for the length of a header, the header in JSON, and the bytes of the tensors.

Accepts and refuses what the safetensors library does, except that it also refuses a name that occurs twice, whose
first tensor the library drops without a word, and entries that are arrays or have an object for a dtype, which no
writer makes.

Source: huggingface/safetensors, ``safetensors/src/tensor.rs`` (``Metadata::validate``).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

import torch

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.file_tensor import FileTensor, Misfit, check_shape
from frostline.checkpoint.readers.refusals import cut_short, reason
from frostline.checkpoint.readers.source import Extent, SourceFile
from frostline.checkpoint.stored import StoredTensor
from frostline.errors import CheckpointError, CorruptCheckpoint, name_some

# The format allows no longer header.
LONGEST_HEADER = 100_000_000
LENGTH = 8
METADATA = "__metadata__"
# Names of dtypes, in the format and in torch.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
# Elements of less than a byte: torch has no tensors of these shapes.
NARROW = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
# The library's parser of JSON goes no deeper.
_DEEPEST = 127
_LIMIT = 2**64
_ENTRY = ("dtype", "shape", "data_offsets")


def read_safetensors(source: SourceFile) -> Contents:
    """Read names, dtypes and shapes; the tensors are read when they are asked for.

    Args:
        source: the file.

    Returns:
        Its tensors, in the order of the header.

    Raises:
        CorruptCheckpoint: the header or the length of the file is wrong.
        CheckpointError: a dtype is none that this torch has.
    """
    header, begin = _header(source)
    metadata = _metadata(source, header.pop(METADATA, None))
    extent = Extent(source, "data", begin, source.size - begin)
    root: dict[str, StoredTensor] = {}
    runs: list[tuple[int, int]] = []
    names: list[str] = []
    unknown: dict[str, None] = {}
    path = str(source.path)
    for name, entry in header.items():
        try:
            if len(entry) != len(_ENTRY):
                _check_depth(entry)
            label, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not (type(start) is int and type(end) is int and 0 <= start <= end and type(shape) is list):
                raise Misfit("offsets or a shape that are none")
            runs.append((start, end))
            names.append(name)
            dtype = _TORCH.get(label)
            if dtype is None:
                if label not in DTYPES and label not in NARROW:
                    raise Misfit(f"a dtype that the format does not have: {label!r:.40}")
                unknown[label] = None
                continue
            if check_shape(shape) * dtype.itemsize != end - start:
                raise Misfit(f"{end - start:,} bytes for a tensor of shape {shape!r:.80} and {label}")
            _check_products(shape, dtype.itemsize)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            found = str(error) if isinstance(error, Misfit) else "an entry that is none"
            raise _damaged(source, f"{found}, for {name_some([name])}") from error
        root[name] = FileTensor(tuple(shape), dtype, (path, name), extent, start)
    _check_cover(source, runs, names, extent.length)
    if unknown:
        raise CheckpointError(
            f"{path} holds tensors of dtypes that torch {torch.__version__} does not have: {name_some(list(unknown))}\n"
            "  fix: a newer torch, or have the file saved in another dtype"
        )
    return Contents("safetensors", root, (source.path,), metadata)


def _header(source: SourceFile) -> tuple[dict[str, Any], int]:
    with source.open() as file:
        head = source.read(file, 0, LENGTH)
        if len(head) < LENGTH:
            raise _damaged(source, "no header")
        length = int.from_bytes(head, "little")
        if length > LONGEST_HEADER:
            raise _damaged(source, f"a header of {length:,} bytes, where the format allows {LONGEST_HEADER:,}")
        if length > source.size - LENGTH:
            raise _damaged(source, f"a header of {length:,} bytes, in a file of {source.size:,}")
        encoded = source.read(file, LENGTH, length)
    try:
        header: object = _parse(encoded.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise _damaged(source, f"a header that cannot be read: {reason(error)}") from error
    if not isinstance(header, dict):
        raise _damaged(source, "a header that is no JSON object")
    return cast("dict[str, Any]", header), LENGTH + length


def _parse(text: str) -> object:
    """JSON as the library reads it, which in corners is stricter than Python."""
    parsed = json.loads(
        text,
        object_pairs_hook=_once,
        parse_constant=_no_number,
        parse_float=_finite,
        # A function for every number would take time, and minus zero is all that it is for: no integer there.
        parse_int=_whole if "-0" in text else None,
    )
    if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a surrogate pair is no text
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = [name for name, _ in pairs if name in seen or seen.add(name)]
        raise ValueError(f"the name {name_some(twice)} twice")
    return entries


def _no_number(text: str) -> object:
    raise ValueError(f"{text}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _whole(text: str) -> float:
    return -0.0 if text == "-0" else int(text)


def _metadata(source: SourceFile, found: object) -> dict[str, str]:
    if found is None:
        return {}
    entries = cast("dict[str, object]", found)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise _damaged(source, f"{METADATA} that is no dictionary of texts")
    return cast("dict[str, str]", found)


def _check_products(shape: list[int], itemsize: int) -> None:
    """The library multiplies from left to right and then by the bits of an element, and refuses what overflows."""
    product = 1
    for size in shape:
        product *= size
        if product >= _LIMIT:
            raise Misfit("a shape of more elements than can be counted")
    if product * itemsize * 8 >= _LIMIT:
        raise Misfit("a shape of more bits than can be counted")


def _check_depth(entry: dict[str, Any]) -> None:
    """Entries may have more fields than they need, which are passed over, but not nested without end."""
    level: list[Any] = [entry]
    for _ in range(_DEEPEST):
        values = [each.values() if isinstance(each, dict) else each for each in level]
        level = [inner for value in values for inner in cast("Any", value) if isinstance(inner, (dict, list))]
        if not level:
            return
    raise Misfit("an entry that is nested too deep")


def _check_cover(source: SourceFile, runs: list[tuple[int, int]], names: list[str], length: int) -> None:
    """The tensors follow one another without holes or overlaps, and end where the file ends."""
    reached = 0
    for index in sorted(range(len(runs)), key=runs.__getitem__):
        start, end = runs[index]
        if start != reached:
            how = "overlaps with the one before it" if start < reached else "has a hole before it"
            raise _damaged(source, f"a tensor that {how}: {name_some([names[index]])}")
        reached = end
    if reached != length:
        raise _damaged(source, f"{length:,} bytes of tensors, where the header names {reached:,}")


def _damaged(source: SourceFile, found: str) -> CorruptCheckpoint:
    return cut_short(source.path, source.size, found)


_TORCH: dict[object, torch.dtype] = {
    label: getattr(torch, name) for label, name in DTYPES.items() if hasattr(torch, name)
}

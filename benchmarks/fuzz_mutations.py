"""Small checkpoints of every format, and seeded ways to damage them: blind ones, and ones that know the format."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

INTERESTING = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 4095, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
# Instructions of pickles that make or move something, so that blind flips are not all there is.
OPCODES = (
    b"(.0125FGIJKLMNPQRSTUVXabcdeghijlopqrstu})]\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f"
    b"\x90\x91\x92\x93\x94\x95\x96\x97\x98BC"
)


def tensors() -> dict[str, Tensor]:
    """Tensors of many kinds, none of them long."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=generator)
    return {
        "conv.weight": values,
        "conv.bias": values[0].clone(),
        "bn.running_mean": torch.arange(5.0, dtype=torch.float64),
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "half": values.half(),
        "brain": values.bfloat16(),
        "small": torch.arange(9, dtype=torch.int8).reshape(3, 3),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "complex": torch.complex(values[0], values[1]),
        "empty": torch.zeros(0, 3),
    }


def nested() -> dict[str, Any]:
    """What training scripts save."""
    state: OrderedDict[str, Any] = OrderedDict(tensors())
    base = torch.arange(24.0)
    state["view"] = base[4:10].reshape(2, 3)
    state["strided"] = base.reshape(4, 6).t()
    state["tied"] = state["conv.weight"]
    state["expanded"] = torch.ones(1).expand(3, 2)
    state["parameter"] = nn.Parameter(torch.ones(2, 2))
    state._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})  # type: ignore[attr-defined]
    return {
        "state_dict": state,
        "epoch": 3,
        "best": 0.75,
        "name": "résumé",
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
        "seen": {1, 2},
        "raw": b"\x00\xff",
        "big": 2**70,
        "flag": [True, None, -5, 70000],
    }


def originals() -> dict[str, dict[str, bytes]]:
    """Format to the files of one checkpoint, by their names; the first is the one that is opened.

    Older files of torch name storages by their addresses, so that those differ from run to run.
    """
    plain = {name: value.contiguous() for name, value in tensors().items()}
    full = nested()
    half = len(plain) // 2
    parts = [dict(list(plain.items())[:half]), dict(list(plain.items())[half:])]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, part in zip(names, parts, strict=True) for name in part},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they will be gone one day; files with them will not
        quantized = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8)
    opaque = {"args": Namespace(lr=1, path=Path("a")), "model": tensors(), "d": defaultdict(list, a=[1])}
    return {
        "safetensors": {"a.safetensors": safetensors.torch.save(plain, {"note": "ü"})},
        "torch": {"a.pt": _saved(full)},
        "torch protocol 4": {"a.pt": _saved(full, pickle_protocol=4)},
        "torch legacy": {"a.pt": _saved(full, _use_new_zipfile_serialization=False)},
        "torch opaque": {"a.pt": _saved(opaque)},
        "torch rare": {"a.pt": _saved({"q": quantized, "s": torch.eye(3).to_sparse(), "w": torch.ones(2)})},
        "sharded": {
            "model.safetensors.index.json": json.dumps(index).encode(),
            **{file: safetensors.torch.save(part) for file, part in zip(names, parts, strict=True)},
        },
    }


def mutate(files: dict[str, bytes], chance: random.Random) -> tuple[dict[str, bytes], str]:
    """Damage one of the files; the name of the way is for the table of results."""
    name = chance.choice(list(files))
    content = files[name]
    ways: dict[str, Any] = dict(BLIND)
    if name.endswith(".safetensors"):
        ways |= {"header length": header_length, "header text": header_text}
    elif content.startswith(b"PK"):
        ways |= {"zip field": zip_field, "pickle in zip": pickle_in_zip, "record in zip": record_in_zip}
    elif name.endswith(".json"):
        ways |= {"header text": json_text}
    else:
        ways |= {"pickle": lambda data, chance: pickle_bytes(data, chance, _pickles_end(data)), "count": count}
    way = chance.choice(list(ways))
    changed = ways[way](content, chance)
    return {**files, name: changed}, way


def flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, chance: random.Random) -> bytes:
    at, width = chance.randrange(len(data)), chance.choice((1, 2, 4, 8))
    return data[:at] + _number(chance, width) + data[at + width :]


def insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 1, 2, 8, 300))) + data[at:]


def delete(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.choice((1, 1, 2, 8, 300)) :]


def repeat(data: bytes, chance: random.Random) -> bytes:
    start, at = chance.randrange(len(data)), chance.randrange(len(data))
    return data[:at] + data[start : start + chance.randrange(1, 200)] + data[at:]


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


BLIND = {
    "bits": flip,
    "overwrite": overwrite,
    "insert": insert,
    "delete": delete,
    "repeat": repeat,
    "truncate": truncate,
}


def header_length(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little") + chance.choice((-8, -1, 1, 8, 2**32, 2**62, 10**8, -50))
    return (length % 2**64).to_bytes(8, "little") + data[8:]


def header_text(data: bytes, chance: random.Random) -> bytes:
    """Change the header and put its new length in front, so that it is read."""
    end = 8 + int.from_bytes(data[:8], "little")
    text = json_text(data[8:end], chance)
    return len(text).to_bytes(8, "little") + text + data[end:]


def json_text(data: bytes, chance: random.Random) -> bytes:
    """Replace a number, a text or a sign of JSON."""
    tokens = list(re.finditer(rb"\d+|\"[^\"]*\"|[\[\]{},:]", data))
    token = chance.choice(tokens)
    old = token.group()
    if old.isdigit():
        new = str(chance.choice((*INTERESTING, 2**64, -1, int(old) + 1, int(old) - 1, int(old) * 2))).encode()
        new = chance.choice((new, new, new, new + b".0", b"true", b"null", b"1e3", b"[" * 5, b"-0", b"00", b"NaN"))
    elif old.startswith(b'"'):
        other = chance.choice(tokens).group()
        new = chance.choice((other, b'"F64"', b'"I8"', b'"F4"', b'"\\ud800"', b'"__metadata__"', b'"\xff"', b'"../x"'))
    else:
        new = chance.choice((b"", b",", b"]", b"[", b"{", b"}", b"[" * 3000, old + old))
    return data[: token.start()] + new + data[token.end() :]


def zip_field(data: bytes, chance: random.Random) -> bytes:
    """Change a field of a local header, of the directory, or of its end."""
    places = [match.start() for match in re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06|\x06\x06|\x06\x07)", data)]
    at = chance.choice(places) + chance.randrange(4, 46)
    width = chance.choice((1, 2, 4, 8))
    return data[:at] + _number(chance, width) + data[at + width :]


def pickle_in_zip(data: bytes, chance: random.Random) -> bytes:
    """Change the pickle, and make its checksum fit, so that it is read."""
    begin, length = _record(data, "/data.pkl")
    old = data[begin : begin + length]
    new = pickle_bytes(old, chance, length)
    new = (new + bytes(length))[:length]
    return _with_checksum(data[:begin] + new + data[begin + length :], old, new)


def record_in_zip(data: bytes, chance: random.Random) -> bytes:
    """Swap the checksum of a record for zero, as if none had been taken, and perhaps change what it holds."""
    begin, length = _record(data, f"/data/{chance.randrange(8)}")
    old = data[begin : begin + length]
    new = flip(old, chance) if old and chance.random() < 0.5 else old
    changed = data[:begin] + new + data[begin + length :]
    at = changed.rfind(struct.pack("<I", zlib.crc32(old)))
    return changed[:at] + bytes(4) + changed[at + 4 :] if at > 0 and old else changed


def pickle_bytes(data: bytes, chance: random.Random, end: int) -> bytes:
    """Change instructions, lengths, names or memo indexes of a pickle."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(end)
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] = chance.choice(OPCODES)
        elif kind == 1:
            changed[at : at + 4] = _number(chance, 4)
        elif kind == 2:
            start = chance.randrange(end)
            part = changed[start : start + chance.randrange(1, 40)]
            changed[at : at + len(part)] = part
        elif kind == 3:
            changed[at] = (changed[at] + chance.choice((-1, 1))) % 256
        else:
            changed[at:at] = bytes((chance.choice(OPCODES), chance.randrange(256)))
    return bytes(changed)


def count(data: bytes, chance: random.Random) -> bytes:
    """Change what stands behind the pickles of an older file: how many elements storages have, and their bytes."""
    at = chance.randrange(_pickles_end(data), len(data))
    return data[:at] + _number(chance, 8) + data[at + 8 :]


def _number(chance: random.Random, width: int) -> bytes:
    return (chance.choice((*INTERESTING, chance.randrange(2**32))) % 2 ** (8 * width)).to_bytes(width, "little")


def _saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def _record(data: bytes, ending: str) -> tuple[int, int]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = next((each for each in archive.infolist() if each.filename.endswith(ending)), archive.infolist()[0])
    name, padding = struct.unpack_from("<HH", data, info.header_offset + 26)
    return info.header_offset + 30 + name + padding, info.file_size


def _with_checksum(data: bytes, old: bytes, new: bytes) -> bytes:
    return data.replace(struct.pack("<I", zlib.crc32(old)), struct.pack("<I", zlib.crc32(new)))


def _pickles_end(data: bytes) -> int:
    file = io.BytesIO(data)
    for _ in range(5):
        _Skip(file).load()
    return file.tell()


def _nothing(*_: Any) -> None:
    """Stands in for whatever a pickle calls."""


class _Skip(pickle.Unpickler):
    """Finds where a pickle of ours ends."""

    def find_class(self, _: str, name: str) -> Any:
        return {"OrderedDict": OrderedDict, "set": set}.get(name, _nothing)

    def persistent_load(self, _: Any) -> Any:
        return None

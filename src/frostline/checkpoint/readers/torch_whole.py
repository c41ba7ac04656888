"""Files that only torch itself can read, and only as a whole.

Two reasons: kinds of tensors that are rare (quantized, conjugated), which torch's own safe reader makes; and pickles
that run code, where the user has asked for that.
"""

from __future__ import annotations

import io
import re
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from frostline.checkpoint.readers.pickle_names import Opaque
from frostline.checkpoint.readers.refusals import cut_short, shown
from frostline.checkpoint.readers.source import SourceFile
from frostline.checkpoint.stored import in_memory
from frostline.compat import import_torchvision
from frostline.errors import CheckpointError, FrostlineError, printable
from frostline.extras import working_directory_importable

# Deeper than the readers let any file be.
_DEEPEST = 200
# Torch's own code for files. An error that arises in other code is one of the code that the file names.
_READING = {"torch.serialization", "torch._utils", "torch.storage", "pickle", __name__}


def read_whole(source: SourceFile, *, allow_pickle: bool) -> object:
    """Load with torch, on the CPU.

    Args:
        source: the file.
        allow_pickle: run the code that the file names.

    Returns:
        What it holds, with tensors that are in memory.

    Raises:
        CorruptCheckpoint: torch cannot read it.
        CheckpointError: the code that it names cannot be imported, or fails.
    """
    try:
        with (
            warnings.catch_warnings(),
            source.open() as file,  # notes whether the file changes meanwhile
        ):
            # About protocols, about quantized tensors as such, and whatever the code of the file has to say.
            warnings.simplefilter("ignore")
            buffered = io.BufferedReader(file)
            try:
                with _code_importable() if allow_pickle else nullcontext():
                    loaded: object = torch.load(buffered, map_location="cpu", weights_only=not allow_pickle)
            finally:
                buffered.detach()  # it would close the file, which is looked at once more
    except MemoryError as error:
        raise CheckpointError(f"{shown(source.path)}: there is no memory to load it whole") from error
    except FrostlineError:
        raise
    except Exception as error:
        if allow_pickle and _is_of_the_code(error):
            raise _code_failed(source, error) from error
        raise cut_short(source.path, source.size, _reason(error)) from error
    return at_hand(loaded)


@contextmanager
def _code_importable() -> Generator[None, None, None]:
    """The working directory can be imported from, as in a script there; torchvision too, whatever torch is here."""
    with working_directory_importable():
        with suppress(Exception):  # whoever needs it meets the same error, and it is told then
            import_torchvision()
        yield


def _is_of_the_code(error: Exception) -> bool:
    """Whether what the file names failed, and not the reading of the file."""
    if isinstance(error, (ImportError, AttributeError)):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") not in _READING for frame, _ in frames)


def _code_failed(source: SourceFile, error: Exception) -> CheckpointError:
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    fix = (
        f"make {printable(name)} importable: install it, or run this in the folder that has it"
        if name
        else "the versions of the packages that it was saved with; or have it saved again as model.state_dict()"
    )
    return CheckpointError(
        f"the checkpoint {shown(source.path)} was not read: the pickle's code failed\n"
        f"  found: {printable(_reason(error))}\n  fix: {fix}"
    )


def at_hand(root: object) -> object:
    """The same with tensors that are in memory already, and modules as their state dicts.

    What is no plain container or tensor is left as it is. Tensors that have no values in memory one after another
    (sparse, nested, on the meta device) become inert stand-ins.
    """
    done: dict[int, tuple[object, object]] = {}

    def convert(value: object, depth: int) -> object:
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if isinstance(value, Tensor):
            return _tensor(value)
        if not isinstance(value, (dict, list, tuple)) or depth > _DEEPEST:
            return value
        if id(value) not in done:
            values: Any = value
            # What holds itself is not followed again. The old object is kept, so that no other gets its identity.
            done[id(value)] = (value, value)
            if isinstance(value, dict):
                inner: Any = OrderedDict((key, convert(each, depth + 1)) for key, each in values.items())
                if hasattr(values, "_metadata"):
                    inner.__dict__["_metadata"] = values._metadata
            else:
                inner = [convert(each, depth + 1) for each in values]
                inner = tuple(inner) if isinstance(value, tuple) else inner
            done[id(value)] = (value, inner)
        return done[id(value)][1]

    return convert(root, 0)


def _tensor(value: Tensor) -> object:
    if value.layout is not torch.strided or value.is_meta or value.is_nested:
        return Opaque(f"torch.Tensor ({'meta' if value.is_meta else 'nested' if value.is_nested else 'sparse'})")
    return in_memory(value.detach().resolve_conj().resolve_neg())


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file in an unsafe way."""
    text = str(error)
    inner = re.search(r"WeightsUnpickler error: (.*)", text)
    line = inner.group(1) if inner else (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {line.strip()[:200]}".rstrip(": ")

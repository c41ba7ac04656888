"""Opens thousands of damaged checkpoints of every format, and reads every tensor in them.

Each must end as an error of the library's tree, or as a right answer: that of the undamaged file, or, where damage
makes another valid file, what safetensors or torch reads from it (torch with its own safe reader or, for what that
does not know, with Python's unpickler over the same names). Anything else fails: another exception, a crash, more than
5 seconds, more than 4 GiB. Children do the work, so that a crash is counted and not shared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import fuzz_mutations as mutations
import measure
import safetensors.torch
import torch
from torch import Tensor

from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.stored import StoredTensor
from frostline.errors import CheckpointError

SECONDS = 5.0
MEMORY = 4 * 2**30
CHUNK = 250
# A child that says nothing for so long hangs where no signal reaches it.
SILENT = 60.0
GOOD = frozenset({"refused", "right", "as the reference", "reference crashed"})


class TooLong(BaseException):
    """The time is up."""


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a checkpoint under its path; tensors as dtype, shape and bytes, stand-ins as nothing at all."""
    if isinstance(value, StoredTensor):
        value = value.read()
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            return
        if value.is_quantized:
            yield path, (str(value.dtype), tuple(value.shape), value.int_repr().flatten().tolist())
            return
        dense = value.detach().resolve_conj().resolve_neg().contiguous()
        dense = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        yield path, (str(value.dtype), tuple(value.shape), dense.numpy().tobytes())
    elif isinstance(value, dict):
        yield path, "dict"
        for key, inner in value.items():
            yield from flat(inner, f"{path}/{key!r}")
    elif isinstance(value, (list, tuple)):
        yield path, f"{len(value)} elements"
        for index, inner in enumerate(value):
            yield from flat(inner, f"{path}/{index}")
    elif isinstance(value, (int, float, str, bytes, bool, complex, type(None), torch.dtype, torch.device)):
        yield path, repr(value)


class Restricted(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's unpickler in Python, for the names that our readers know."""

    def find_class(self, module: str, name: str) -> Any:
        dotted = f"{module}.{name}".replace("__builtin__", "builtins")
        known = ("torch.Size", "torch.device", "_codecs.encode", "collections.OrderedDict", "collections.Counter")
        if dotted in known or dotted in {f"builtins.{each}" for each in ("set", "frozenset", "bytearray", "complex")}:
            return super().find_class(module, name)
        if dotted == "collections.defaultdict":
            return dict_of_nothing
        if dotted.startswith("torch._utils._rebuild_") or (module in {"torch", "torch.storage"} and "Storage" in name):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return Unknown


def dict_of_nothing(*_: Any) -> dict[Any, Any]:
    return {}


class Unknown:
    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def reference(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """What others read from the same files; nothing where they refuse them."""
    first = folder / names[0]
    answers: list[dict[str, Any]] = []
    if len(names) > 1:
        index = json.loads(first.read_bytes())["weight_map"]
        shards = {file: safetensors.torch.load_file(folder / file) for file in set(index.values())}
        return [dict(flat({name: shards[file][name] for name, file in index.items()}))]
    if first.suffix == ".safetensors":
        return [dict(flat(safetensors.torch.load_file(first)))]
    module: Any = types.ModuleType("restricted")
    module.Unpickler, module.load = Restricted, lambda file, **_: Restricted(file).load()
    for options in ({"weights_only": True}, {"weights_only": False, "pickle_module": module}):
        try:
            answers.append(dict(flat(torch.load(first, map_location="cpu", **options))))
        except Exception:
            continue
    return answers


def examine(files: dict[str, bytes], folder: Path, expected: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How the reading of some files ends; told in two steps, because the reference may crash."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = dict(flat(read_contents(folder / next(iter(files))).root))
    except CheckpointError as error:
        yield "refused", type(error).__name__
        return
    except TooLong:
        yield "too long", ""
        return
    except MemoryError as error:
        yield "too much memory", repr(error)
        return
    except Exception as error:
        yield "another exception", f"{type(error).__name__}: {error}"[:300]
        return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if found == expected:
        yield "right", ""
        return
    yield "reference crashed", ""
    try:
        answers = reference(folder, list(files))
    except Exception:
        answers = []
    if any(agree(found, answer) for answer in answers):
        yield "as the reference", ""
    else:
        yield ("wrong" if answers else "more lenient than the reference"), difference(found, answers)


def agree(found: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether both are the same, but for objects that only one of them makes."""
    common = found.keys() & answer.keys()
    tensors = {name for name, value in answer.items() if isinstance(value, tuple)}
    ours = {name for name, value in found.items() if isinstance(value, tuple)}
    return tensors == ours and all(found[name] == answer[name] for name in common)


def difference(found: dict[str, Any], answers: list[dict[str, Any]]) -> str:
    if not answers:
        return ""
    names = [name for name in found.keys() | answers[0].keys() if found.get(name) != answers[0].get(name)]
    return "; ".join(f"{name}: {str(found.get(name))[:60]} / {str(answers[0].get(name))[:60]}" for name in names[:3])


def work(seeds: range, whole: dict[str, dict[str, bytes]], results: Connection) -> None:
    """Examine one file a seed, in a process of its own."""

    def too_long(*_: Any) -> None:
        raise TooLong

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_long)
    base = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, base + MEMORY))
    kinds = list(whole)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        expected: dict[str, dict[str, Any]] = {}
        for kind, files in whole.items():
            for name, content in files.items():
                (folder / name).write_bytes(content)
            expected[kind] = dict(flat(read_contents(folder / next(iter(files))).root))
        for seed in seeds:
            files, way = mutate(whole, kinds[seed % len(kinds)], seed)
            for outcome, note in examine(files, folder, expected[kinds[seed % len(kinds)]]):
                results.send((seed, way, outcome, note))


def mutate(whole: dict[str, dict[str, bytes]], kind: str, seed: int) -> tuple[dict[str, bytes], str]:
    return mutations.mutate(whole[kind], random.Random(seed))


def run(count: int, first: int, processes: int, whole: dict[str, dict[str, bytes]]) -> dict[int, tuple[str, str, str]]:
    """Seed to way, outcome and note."""
    context = multiprocessing.get_context("spawn")
    todo = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    found: dict[int, tuple[str, str, str]] = {}
    running: dict[Any, tuple[Any, range, list[int], float]] = {}
    while todo or running:
        while todo and len(running) < processes:
            seeds = todo.pop()
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=work, args=(seeds, whole, theirs), daemon=True)
            child.start()
            theirs.close()
            running[ours] = (child, seeds, [seeds.start - 1], time.monotonic())
        for pipe in wait(list(running), timeout=1.0):
            child, seeds, last, _ = running[pipe]
            try:
                seed, way, outcome, note = pipe.recv()
            except EOFError:
                child.join()
                finish(pipe, running, todo, found, f"signal or exit {child.exitcode}")
                continue
            found[seed] = (way, outcome, note)
            last[0] = seed
            running[pipe] = (child, seeds, last, time.monotonic())
        for pipe, (child, _, _, heard) in list(running.items()):
            if time.monotonic() - heard > SILENT:
                child.kill()
                child.join()
                finish(pipe, running, todo, found, "no answer")
    return found


def finish(pipe: Any, running: dict[Any, Any], todo: list[range], found: dict[int, Any], how: str) -> None:
    """Take a child that ended off the list; if it did not come to its end, note where, and go on behind."""
    _, seeds, (last,), _ = running.pop(pipe)
    if last + 1 < seeds.stop:
        # It died in the reference if it had told its own outcome before.
        died = last if last >= seeds.start and found[last][1] == "reference crashed" else last + 1
        if died != last:
            found[died] = ("", "crash", how)
        todo.append(range(died + 1, seeds.stop))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=14_000, help="how many damaged files (default 14000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the files that fail")
    arguments = parser.parse_args()
    whole = mutations.originals()
    kinds = list(whole)
    start = time.perf_counter()
    found = run(arguments.files, arguments.first, arguments.processes, whole)
    seconds = time.perf_counter() - start
    table: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    ways: dict[str, Counter[str]] = {}
    failures: list[dict[str, Any]] = []
    for seed, (way, outcome, note) in sorted(found.items()):
        kind = kinds[seed % len(kinds)]
        table[kind][outcome] += 1
        ways.setdefault(way, Counter())[outcome] += 1
        if outcome not in GOOD:
            failures.append({"seed": seed, "format": kind, "way": way, "outcome": outcome, "note": note})
            keep(arguments.keep, seed, whole, kind)
    print("| format | files | " + " | ".join(sorted(GOOD)) + " | failures |\n|---|---|---|---|---|---|---|")
    for kind, counts in table.items():
        good = " | ".join(str(counts[outcome]) for outcome in sorted(GOOD))
        print(f"| {kind} | {counts.total()} | {good} | {sum(counts[each] for each in counts.keys() - GOOD)} |")
    print(f"{len(found)} files in {seconds:.0f} s, {len(failures)} failures")
    for failure in failures[:20]:
        print(failure)
    data = {
        "schema_version": measure.SCHEMA_VERSION,
        "benchmark": "fuzz_readers",
        "machine": measure.machine(),
        "settings": {"files": arguments.files, "first_seed": arguments.first, "seconds": SECONDS, "memory": MEMORY},
        "formats": {kind: dict(sorted(counts.items())) for kind, counts in table.items()},
        "ways": {way: dict(sorted(counts.items())) for way, counts in sorted(ways.items())},
        "seconds": round(seconds, 1),
        "failures": failures,
    }
    measure.RESULTS.mkdir(exist_ok=True)
    with (measure.RESULTS / "fuzz_readers.json").open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
    sys.exit(bool(failures))


def keep(folder: Path | None, seed: int, whole: dict[str, dict[str, bytes]], kind: str) -> None:
    """Write the files of a seed somewhere, to look at them."""
    if folder is not None:
        place = folder / str(seed)
        place.mkdir(parents=True, exist_ok=True)
        for name, content in mutate(whole, kind, seed)[0].items():
            (place / name).write_bytes(content)


if __name__ == "__main__":
    main()

"""Plan how a model takes the values of a checkpoint: each entry of either side gets one verdict.

Names first: the same, renamed by a rule, under a prefix, or inferred; then shapes and types. Only reads; values are
not read but where tied tensors have to be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from frostline.checkpoint.adapters import Adapt, read_adapt
from frostline.checkpoint.container import WRAPPER_TOKENS
from frostline.checkpoint.norm_settings import compare_settings
from frostline.checkpoint.opened import Checkpoint, Source, open_checkpoint
from frostline.checkpoint.patterns import read_patterns
from frostline.checkpoint.plan import LoadPlan, Row
from frostline.checkpoint.planner import Planner
from frostline.checkpoint.rules import Renames, read_renames, rename_all
from frostline.errors import printable
from frostline.state import names
from frostline.state.inventory import Inventory, inventory
from frostline.state.selection import Selector, select


def plan_load(
    model: nn.Module,
    source: Source,
    *,
    take: str | None = None,
    rename: Renames | None = None,
    keep: Selector | Iterable[Selector] = (),
    drop: str | Iterable[str] = (),
    adapt: Adapt = (),
    accept_ambiguous: bool = False,
    accept_suspect: str | Iterable[str] = (),
    allow_pickle: bool = False,
) -> LoadPlan:
    """Plan how a model takes the values of a checkpoint; nothing is changed until the plan is applied.

    Every parameter and persistent buffer of the model and every tensor of the checkpoint gets exactly one verdict.
    What is not loaded on purpose has to be covered by a pattern; anything else makes the plan incomplete, and an
    incomplete plan cannot be applied. There is no way to ask for "whatever fits".

    Where names differ, the plan tries a prefix that all of them have, and then the structure: modules of the same
    shapes at the same place among their like. An assignment that another one could equal is ``ambiguous``.

    Args:
        model: any module; wrappers are looked through. It is only read.
        source: a file, folder or index of shards, a state dict (nested or not), or another model.
        take: the part of the checkpoint that is wanted: keys of a container (``"teacher"``), a dotted path among the
            names (``"backbone"``), or one after the other. Names then begin below it; the rest is left out.
        rename: rules, see :mod:`frostline.checkpoint.rules`: ``"layer{n}.conv{m} -> stages.{n}.conv{m}"``.
        keep: selectors of what keeps its values in the model.
        drop: globs for names in the checkpoint that are not wanted; a module's name means all below it.
        adapt: adapters for shapes that differ, by name or as values, see :mod:`frostline.checkpoint.adapters`; or each
            for a pattern on names of the model. ``"narrow"`` lets values be rounded to a coarser type.
        accept_ambiguous: take the assignment that is shown where another is as good.
        accept_suspect: globs for entries that may be NaN, infinite or a negative variance.
        allow_pickle: run whatever code the file brings. Only for files that you trust as you trust a program.

    Returns:
        The :class:`~frostline.checkpoint.plan.LoadPlan`; it prints itself, ``apply()`` carries it out.

    Raises:
        CheckpointError: the checkpoint cannot be used, or a pattern or rule matches nothing.
        CorruptCheckpoint: it cannot be read.
        UnsafeCheckpoint: it wants to run code.
        NothingSelected: a selector in ``keep`` matches nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> old = {"state_dict": {"module.0.weight": torch.ones(3, 2), "module.0.bias": torch.ones(3)}}
        >>> plan = plan_load(model, old, keep="1")
        >>> [(row.target, row.source, row.verdict) for row in plan.rows][:3]
        [('0.weight', '0.weight', 'same'), ('0.bias', '0.bias', 'same'), ('1.weight', None, 'kept-init')]
        >>> report = plan.apply()
        >>> report.coverage, report.summary
        (0.5, "the state dict -> Sequential: 2/4 tensors, 9/25 elements (36 %); container 'state_dict'; ...")
    """
    root = names.unwrap(model)
    entries = inventory(model)
    own_names = {part for name in entries.tensors for part in name.split(".")}
    checkpoint = open_checkpoint(
        source, take=take, keep=WRAPPER_TOKENS.intersection(own_names), allow_pickle=allow_pickle
    )
    rules, drops = read_renames(rename), read_patterns(drop)
    keeps = [keep] if isinstance(keep, (str, nn.Module, nn.Parameter, type)) or not isinstance(keep, Iterable) else keep
    keeps = list(keeps)
    planner = Planner(root, entries, checkpoint, read_adapt(adapt), accept_ambiguous)
    planner.leave_out(drops)
    planner.keep(_kept(root, entries, keeps))
    planner.pair_by_name(rename_all(planner.free, rules) if rules else {})
    planner.pair_by_structure()
    rows = planner.rows()
    planner.check_adapters()
    return LoadPlan(
        source=checkpoint,
        model_name=type(root).__name__,
        rows=tuple(rows),
        notes=tuple(_notes(root, entries, checkpoint, rows, source)),
        asked={
            "take": take,
            "rename": [rule.to_json() for rule in rules],
            "keep": [each if isinstance(each, str) else repr(each)[:80] for each in keeps],
            "drop": list(drops),
            "accept_ambiguous": accept_ambiguous,
        },
        accept_suspect=read_patterns(accept_suspect),
        model=model,
    )


def _kept(model: nn.Module, entries: Inventory, keeps: Sequence[Selector]) -> set[str]:
    """The paths that selectors mean; what is no tensor is named by its own path, or goes with its module."""
    kept = {each for each in keeps if isinstance(each, str) and each in entries and entries[each].kind == "extra"}
    rest = [each for each in keeps if not (isinstance(each, str) and each in kept)]
    if rest:
        selection = select(model, *rest)
        kept |= {*selection.parameters, *selection.buffers}
        kept |= {names.join(path, "extra_state") for path in selection.modules}
    return kept


def _notes(
    model: nn.Module, entries: Inventory, checkpoint: Checkpoint, rows: Sequence[Row], source: Source
) -> list[str]:
    """What is to be known beside the verdicts."""
    notes: list[str] = []
    filled = {row.target for row in rows if row.verdict == "filled:0"}
    cumulative = [
        entry.module
        for entry in entries.values()
        if entry.path in filled and getattr(model.get_submodule(entry.module), "momentum", 0.1) is None
    ]
    if cumulative:
        notes.append(
            f"{len(cumulative)} layers average over all batches (momentum=None) and count from 0: "
            f"the first batch in train mode overwrites their statistics ({printable(cumulative[0])} ...)"
        )
    pairs = {row.source: row.target for row in rows if row.is_loaded and row.source and row.target}
    notes += compare_settings(model, checkpoint, source if isinstance(source, nn.Module) else None, pairs)
    fanned = [name for name, count in Counter(row.source for row in rows if row.source).items() if count > 1]
    if fanned:
        notes.append(f"{len(fanned)} tensors of the checkpoint go to several places of the model")
    return notes

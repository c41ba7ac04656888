"""Makes plain values of what a recorder holds: paths for objects, totals for steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.audit.events import Event, GroupAdded, StateDictKept
from frostline.audit.marks import marks
from frostline.audit.model_watch import ModelWatch
from frostline.audit.module_facts import hidden_in, kinds_of, spectral_gaps
from frostline.audit.optimizer_watch import OptimizerWatch
from frostline.audit.recorder import Pending, Recorder
from frostline.audit.rows import Row, pointer_of
from frostline.audit.seen import (
    GroupSeen,
    ModelSeen,
    ModuleSeen,
    OddAttribute,
    OptimizerSeen,
    Seen,
    TensorSeen,
    Walk,
    settings_of,
)
from frostline.state import names
from frostline.state.aliases import find_aliases

# What users write on a module when they mean to freeze it.
_MEANT = frozenset(
    {"requires_grad", "require_grad", "requires_grads", "require_grads", "requires_grad_"}
    | {"trainable", "is_trainable", "stop_gradient", "frozen", "freeze"}
)


def finish(recorder: Recorder) -> None:
    """Look at everything a last time."""
    for watch in recorder.models:
        watch.close_phase(recorder.steps)
        if watch.contract_at is not None:
            watch.scan(recorder.steps, in_step=False)
            watch.check(recorder.steps, parameters=True)
        if watch.trace_refused:
            recorder.missed.setdefault(f"{watch.name} was not looked at by operators: {watch.trace_refused}")
        if not watch.eval_traced:
            watch.sigma_gaps = spectral_gaps(watch.modules)


def fill(seen: Seen, recorder: Recorder, kept: Iterable[StateDictKept]) -> None:
    """Write all that a recorder knows into a result, in place: it was handed out when the watch began."""
    owners = _owners(recorder)
    seen.events = sorted([*_events(recorder), *kept], key=lambda event: event.at)
    seen.models = [_model(watch, owners) for watch in recorder.models]
    seen.models.sort(key=lambda model: not model.trained)
    seen.optimizers = [_optimizer(watch, recorder) for watch in recorder.optimizers]
    seen.warnings = list(recorder.warnings)
    seen.sources = tuple(recorder.sources)
    seen.walks = list(_walks(recorder))


def _walks(recorder: Recorder) -> Iterator[Walk]:
    for (_, method, _, _), (ref, place) in recorder.walks.items():
        module = ref()
        model, path = ("", "") if module is None else recorder.place_of(module)
        if model:
            yield Walk(model, path, method, place)


def _events(recorder: Recorder) -> Iterator[Event]:
    for event in recorder.events:
        if isinstance(event, Event):
            yield event
        else:
            yield _resolve(event, recorder)


def _resolve(event: Pending, recorder: Recorder) -> Event:
    fields = dict(event.fields)
    if event.make is GroupAdded:
        tensors = [ref() for ref in event.items["paths"]]
        fields["paths"] = tuple(("", "") if t is None else recorder.place_of(t) for t in tensors)
        return GroupAdded(**fields)
    item = event.item()
    model, path = ("", "") if item is None else recorder.place_of(item)
    if not model and any(watch.name == event.known[0] for watch in recorder.models):
        model, path = event.known
    for name, refs in event.items.items():
        fields[name] = tuple(recorder.place_of(i)[1] for ref in refs if (i := ref()) is not None)
    return _made(event, model, names.join(path if model else event.kind, event.below), fields)


def _made(event: Pending, model: str, path: str, fields: dict[str, Any]) -> Event:
    make: Any = event.make
    return make(model=model, path=path, **fields)


def _owners(recorder: Recorder) -> dict[int, tuple[str, int]]:
    return {
        id(tensor): (watch.name, number)
        for watch in recorder.optimizers
        for number, group in enumerate(watch.optimizer.param_groups)
        for tensor in group["params"]
    }


def _model(watch: ModelWatch, owners: dict[int, tuple[str, int]]) -> ModelSeen:
    now = marks({path: row.tensor for path, row in watch.rows.items()})
    aliases = find_aliases({path: row.tensor for path, row in watch.rows.items() if pointer_of(row.tensor)})
    tensors = {
        path: _tensor(row, owners, now.get(path, ""), tuple(aliases.get(path, ()))) for path, row in watch.rows.items()
    }
    modules = {path: _module(path, module, watch) for path, module in watch.modules.items()}
    lost = tuple(
        path
        for path, (ref, pointer) in watch.wrapped.items()
        if (t := ref()) is None
        or watch.rows.get(path) is None
        or watch.rows[path].tensor is not t
        or pointer_of(t) != pointer
    )
    return ModelSeen(
        name=watch.name,
        type=type(watch.model).__name__,
        tensors=tensors,
        modules=modules,
        wrapper=watch.wrapper,
        contract_at=watch.contract_at,
        declared=watch.declared,
        odd=list(_odd(watch)),
        phases=watch.phases,
        draws=watch.draws,
        norm_input=watch.norm_input,
        forwards=watch.forwards,
        backwards=watch.backwards,
        hidden=list(_hidden(watch)),
        tied=_tied(aliases, watch.rows),
        settings=watch.changed_settings,
        bypassed=watch.bypassed,
        traced=watch.traced and not watch.trace_refused,
        compiled=watch.compiled,
        wrapped_lost=lost,
        live=watch.model,
    )


def _tensor(row: Row, owners: dict[int, tuple[str, int]], now: str, aliases: tuple[str, ...]) -> TensorSeen:
    tensor = row.tensor
    then = row.first
    moved = row.moved or (bool(row.digest) and now != row.digest)
    lazy = is_lazy(tensor)
    return TensorSeen(
        path=row.path,
        kind=row.kind,
        role=row.role,
        module=names.parent(row.path),
        module_type=type(row.owner).__name__,
        shape=() if lazy else tuple(tensor.shape),
        must_stay=row.must_stay,
        trainable=row.trainable,
        trainable_now=row.kind == "parameter" and tensor.requires_grad,
        owner=owners.get(id(tensor)),
        owned_at_start=None if then is None else owners.get(id(then)),
        moved=moved,
        first_moved=row.first_moved if row.first_moved is not None or not moved else 0,
        moved_in_step=row.in_step,
        moved_between=row.between,
        gradients=row.gradients,
        steps=row.steps,
        drift=row.drift,
        writes=row.writes,
        aliases=aliases,
        replaced=row.replaced,
        numel=0 if lazy else tensor.numel(),
        non_finite=_is_not_finite(row),
        may_move=row.may_move,
        odd_at_start=row.odd_at_start,
        unit_norm=float(tensor.detach().double().norm()) if row.name in {"weight_u", "weight_v", "_u", "_v"} else None,
    )


def _is_not_finite(row: Row) -> bool:
    tensor = row.tensor
    if not (row.kind == "buffer" or row.must_stay) or not pointer_of(tensor) or not tensor.is_floating_point():
        return False
    return not bool(tensor.detach().isfinite().all())


def _module(path: str, module: nn.Module, watch: ModelWatch) -> ModuleSeen:
    runs = watch.runs.get(id(module), [0, 0, 0, 0])
    own = module.__dict__
    return ModuleSeen(
        path=path,
        type=type(module).__name__,
        kinds=kinds_of(module),
        training=watch.training_then.get(path, module.training),
        training_now=module.training,
        must_eval="" if path in watch.thawed and path not in watch.undone else watch.must_eval.get(path, ""),
        frozen=watch.parameters.is_frozen(path),
        frozen_above=watch.parameters.frozen_above(path),
        runs_grad=runs[0],
        runs_no_grad=runs[1],
        runs_checkpoint=runs[2],
        runs=runs[3],
        odd={name: value for name, value in own.items() if _is_odd(name, value)},
        parameters=watch.parameters.below(path).all,
        overrides_train=type(module).train is not nn.Module.train,
        no_statistics=isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None,
        sigma_gap=watch.sigma_gaps.get(path),
    )


def _is_odd(name: str, value: Any) -> bool:
    return name in _MEANT and isinstance(value, bool)


def _odd(watch: ModelWatch) -> Iterator[OddAttribute]:
    for path, module in watch.modules.items():
        for name, value in module.__dict__.items():
            if _is_odd(name, value):
                yield OddAttribute(path, "module", name, repr(value))
    for path, row in watch.rows.items():
        if row.kind == "parameter":
            for name, value in vars(row.tensor).items():
                if not name.startswith("_"):
                    yield OddAttribute(path, "parameter", name, repr(value))


def _hidden(watch: ModelWatch) -> Iterator[tuple[str, str, int]]:
    counts: dict[tuple[str, str], int] = {}
    for path, name, module in hidden_in(watch.model, watch.modules):
        counts[(path, name)] = counts.get((path, name), 0) + sum(1 for _ in module.parameters())
    for (path, name), count in counts.items():
        yield path, name, count


def _tied(aliases: dict[str, list[str]], rows: dict[str, Row]) -> list[tuple[str, ...]]:
    groups: dict[frozenset[str], None] = {}
    for path, others in aliases.items():
        if rows[path].kind == "parameter":
            groups.setdefault(frozenset([path, *others]))
    order = {path: i for i, path in enumerate(rows)}
    return [tuple(sorted(group, key=order.__getitem__)) for group in groups]


def _optimizer(watch: OptimizerWatch, recorder: Recorder) -> OptimizerSeen:
    groups: list[GroupSeen] = []
    orphans: list[tuple[int, ...]] = []
    were: list[tuple[str, str]] = []
    for number, group in enumerate(watch.optimizer.param_groups):
        paths: list[tuple[str, str]] = []
        for tensor in group["params"]:
            model, path = recorder.place_of(tensor)
            live = next((m for m in recorder.models if m.name == model), None)
            if live is None or live.rows.get(path) is None or live.rows[path].tensor is not tensor:
                orphans.append(tuple(tensor.shape))
                before = (model, path) if model else _before(tensor, recorder)
                if before[0]:
                    were.append(before)
                paths.append(("", before[1]))
            else:
                paths.append((model, path))
        rates = watch.rates[number] if number < len(watch.rates) else []
        settings = settings_of(group)
        groups.append(GroupSeen(paths, settings, watch.ignored(number), rates, settings.get("lr", 0.0)))
    return OptimizerSeen(
        name=watch.name,
        type=type(watch.optimizer).__name__,
        groups=groups,
        steps=watch.steps,
        made=watch.made,
        made_at=watch.made_at,
        orphans=orphans,
        orphans_were=were,
        schedulers=watch.schedulers,
        modes=watch.has_modes,
        in_train_mode=watch.in_train_mode,
        in_train_mode_at_eval=watch.in_train_mode_at_eval,
        live=watch.optimizer,
    )


def _before(tensor: Tensor, recorder: Recorder) -> tuple[str, str]:
    """Where a parameter was that was replaced before its model was seen."""
    for ref, module_ref, below in recorder.replaced:
        module = module_ref()
        if ref() is tensor and module is not None:
            model, path = recorder.place_of(module)
            return model, names.join(path, below)
    return "", ""

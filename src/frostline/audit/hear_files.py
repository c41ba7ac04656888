"""Listens to state dicts: who takes one and keeps it, what is loaded, and what goes into a file."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.audit.containers import walk
from frostline.audit.discovery import inner_of
from frostline.audit.events import Load, Save, StateDictKept
from frostline.audit.marks import marks
from frostline.audit.places import Place
from frostline.audit.recorder import Recorder
from frostline.audit.rows import HUGE, largest, pointer_of
from frostline.state import names

# So many tensors of a state dict stand for all of them.
_SAMPLE = 4
# A dictionary with this share of a model's names is that model's, whatever memory it is in.
_NAMED = 0.5


@dataclass
class _Taken:
    """A state dict that somebody took: by a few of its tensors, since a copy of the dictionary keeps them alive too."""

    tensors: list[weakref.ref[Tensor]]
    module: weakref.ref[nn.Module]
    step: int
    at: int
    place: Place
    loaded_back: bool = False


class FileListener:
    """Hears ``state_dict``, ``load_state_dict`` and ``save``."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._taken: list[_Taken] = []
        self._others: deque[tuple[Any, str]] = deque(maxlen=16)

    def around_state_dict(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``state_dict`` of a module."""
        result = original(*args, **kwargs)
        recorder = self._recorder
        with recorder.work():
            self._taken = [taken for taken in self._taken if taken.loaded_back or _alive(taken)]
            tensors = [v for v in result.values() if isinstance(v, Tensor) and not isinstance(v, nn.Parameter)]
            if tensors:
                sample = [weakref.ref(t) for t in tensors[:_SAMPLE]]
                self._taken.append(
                    _Taken(sample, weakref.ref(args[0]), recorder.steps, recorder.count, recorder.place())
                )
                recorder.count += 1
        return result

    def kept(self) -> Iterator[StateDictKept]:
        """State dicts of live tensors that steps went by over while somebody kept them."""
        for taken in self._taken:
            module = taken.module()
            after = self._recorder.steps - taken.step
            if module is None or not after or not (taken.loaded_back or _is_live(taken, module)):
                continue
            model, path = self._recorder.place_of(inner_of(module))
            yield StateDictKept(
                at=taken.at, step=taken.step, place=taken.place, model=model, path=path, steps_after=after
            )

    def around_other_state(self, of: str) -> Callable[..., Any]:
        """``state_dict`` of an optimizer, a scheduler or a scaler."""

        def around(original: Any, args: Any, kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._others.append((result, of))
            return result

        return around

    # -- loading ------------------------------------------------------------------------------------------------------

    def around_load(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``load_state_dict`` of a module."""
        recorder = self._recorder
        module: nn.Module = args[0]
        given: Mapping[str, Any] = args[1] if len(args) > 1 else kwargs.get("state_dict", {})
        before: dict[str, str] = {}
        own = False
        with recorder.work():
            before = marks(dict(_tensors_of(module)))
            own = _is_own(given, module)
            loaded = {id(value) for value in given.values()}
            for taken in self._taken:
                if taken.step < recorder.steps and any(
                    (t := ref()) is not None and id(t) in loaded for ref in taken.tensors
                ):
                    taken.loaded_back = taken.loaded_back or _is_live(taken, module)
        result, error = None, ""
        try:
            result = original(*args, **kwargs)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            with recorder.work():
                recorder.groups_changed()
                options = {
                    "exact": bool(kwargs.get("strict", args[2] if len(args) > 2 else True)),
                    "assign": bool(kwargs.get("assign", args[3] if len(args) > 3 else False)),
                }
                self._note_load(module, given, options, before, result, own=own, error=error)
        return result

    def _note_load(
        self,
        module: nn.Module,
        given: Mapping[str, Any],
        options: dict[str, bool],
        before: dict[str, str],
        result: Any,
        *,
        own: bool,
        error: str,
    ) -> None:
        recorder = self._recorder
        now = dict(_tensors_of(module))
        floating = {p: t for p, t in now.items() if t.is_floating_point() and not t.is_meta and t.numel()}
        recorder.add_pending(
            Load,
            inner_of(module),
            {
                "not_finite": [t for t in floating.values() if not bool(torch.isfinite(t).all())],
                "huge": [t for t in floating.values() if isinstance(t, nn.Parameter) and largest(t) > HUGE],
            },
            exact=options["exact"],
            assign=options["assign"],
            given=sum(isinstance(value, Tensor) for value in given.values()),
            wanted=len(module.state_dict().keys()),
            missing=tuple(getattr(result, "missing_keys", ())),
            unexpected=tuple(getattr(result, "unexpected_keys", ())),
            changed=sum(mark != before.get(path) for path, mark in marks(now).items()),
            own=own,
            error=error,
        )
        watch = recorder.watch_of(inner_of(module))
        if watch is not None:
            # A load is meant: what must stay must stay as it was loaded.
            watch.refresh()
            watch.rebase()

    # -- saving -------------------------------------------------------------------------------------------------------

    def around_save(self, original: Any, args: Any, kwargs: Any) -> Any:
        """Tensors go into a file."""
        with self._recorder.work():
            given = [*args, *kwargs.values()]
            self._note_save(given[0], given[1] if len(given) > 1 else "")
        return original(*args, **kwargs)

    def _note_save(self, saved: Any, file: Any) -> None:
        recorder = self._recorder
        pointers: dict[int, list[tuple[str, str]]] = {}
        for watch in recorder.models:
            for row in watch.rows.values():
                pointers.setdefault(pointer_of(row.tensor), []).append((watch.name, row.path))
        pointers.pop(0, None)
        others = {id(state): of for state, of in self._others}
        paths: dict[str, dict[str, None]] = {}
        states: dict[str, None] = {}
        whole = False
        for item in walk(saved):
            if id(item) in others:
                states.setdefault(others[id(item)])
            tensors: list[Tensor] = []
            if isinstance(item, nn.Module):
                whole = True
                tensors = [tensor for _, tensor in _tensors_of(item)]
            elif isinstance(item, Tensor):
                tensors = [item]
            elif isinstance(item, Mapping):
                self._by_name(cast("Mapping[Any, Any]", item), paths)
            for tensor in tensors:
                for model, path in pointers.get(pointer_of(tensor), ()):
                    paths.setdefault(model, {}).setdefault(path)
        if paths:
            states.setdefault("model")
        top = cast("Mapping[Any, Any]", saved) if isinstance(saved, Mapping) else {}
        recorder.add(
            Save,
            file=str(file),
            top_keys=tuple(key for key in top if isinstance(key, str)),
            saved={model: tuple(found) for model, found in paths.items()},
            states=tuple(states),
            merged=tuple(
                (watch.name, path)
                for watch in recorder.models
                for path, module in watch.modules.items()
                if module.__dict__.get("merged") is True
            ),
            whole_module=whole,
        )

    def _by_name(self, item: Mapping[Any, Any], paths: dict[str, dict[str, None]]) -> None:
        """Full tensors of a sharded model are new memory: their names have to tell whose they are."""
        keys = [
            names.canonical(k).removeprefix("module.")
            for k, v in item.items()
            if isinstance(k, str) and isinstance(v, Tensor)
        ]
        for watch in self._recorder.models:
            found = [key for key in keys if key in watch.rows]
            if len(found) >= max(1, _NAMED * len(keys)) and len(found) > 1:
                paths.setdefault(watch.name, {}).update(dict.fromkeys(found))


def _alive(taken: _Taken) -> bool:
    return any(ref() is not None for ref in taken.tensors)


def _is_live(taken: _Taken, module: nn.Module) -> bool:
    """Whether what is kept is the memory of the module, not a copy."""
    own = {pointer_of(t) for _, t in _tensors_of(module)} - {0}
    return any((t := ref()) is not None and pointer_of(t) in own for ref in taken.tensors)


def _is_own(given: Mapping[str, Any], module: nn.Module) -> bool:
    """Whether all tensors that came are the module's own memory."""
    own = {pointer_of(t) for _, t in _tensors_of(module)} - {0}
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    return bool(tensors) and all(pointer_of(t) in own for t in tensors)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()

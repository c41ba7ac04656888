"""A part that train() of the module it is in puts into train mode, so that an earlier eval() of it is undone."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import somebody_keeps_mode
from frostline.lint.phases import SWITCHES
from frostline.lint.values import is_below, owner_of, related


def train_of_owner(view: FileView, flow: Flow, path: str) -> Event | None:
    """What calls train() on an instance of the class that a part is an attribute of.

    ``None`` where nothing of the files does, and wherever anything may put the part back into eval mode: a train() or
    other method of the class that sets a mode, a framework that calls them, a call that nobody here knows.

    Args:
        view: the file.
        flow: the flow of a method of the class.
        path: the part, as methods of the class know it: ``self.teacher``.
    """
    cls = _class_of(view, flow, path)
    if not cls or view.walk.is_lightning(cls) or somebody_keeps_mode(view) or _sees_to_modes(view, cls):
        return None
    for other, made, part in _instances(view, cls, path):
        train, is_set = _train_in(other, made, part)
        if train is not None and not is_set:
            return train
    return None


def is_set_outside(view: FileView, flow: Flow, path: str) -> bool:
    """Whether code around an instance of the class may set the mode of the part: ``model.teacher.eval()``."""
    cls = _class_of(view, flow, path)
    return bool(cls) and any(_train_in(*each)[1] for each in _instances(view, cls, path))


def _class_of(view: FileView, flow: Flow, path: str) -> str:
    """The module class that a part is an attribute of; "" if there is none."""
    cls = view.walk.qualified(flow.owner) if flow.owner and path.startswith("self.") else ""
    return cls if cls and view.walk.is_module(cls) else ""


def _instances(view: FileView, cls: str, path: str) -> Iterator[tuple[Flow, Event, str]]:
    """Where an instance of a class is made: the flow, the event, and the part under its path there."""
    for flow in view.flows:
        for made in flow.of("new"):
            value = made.get("value")
            if value is not None and value.cls == cls and made.path:
                yield flow, made, made.path + path[len("self") :]


def _sees_to_modes(view: FileView, cls: str) -> bool:
    """Whether a method behind ``__init__`` may set the mode of parts, or a base is not known."""
    for walk, owner in view.walk.ancestry(cls):
        if "?" in walk.bases(owner):
            return True
        for name, function in walk.methods_of(owner.name).items():
            method = name.rpartition(".")[2]
            if method in {"train", "eval"}:
                return True
            if method != "__init__" and any(e.what == "mode" and e.path != "self" for e in function.events):
                return True
            if any(e.what == "unknown" and SWITCHES.search(str(e.get("name", ""))) for e in function.events):
                return True
    return False


def _train_in(flow: Flow, made: Event, part: str) -> tuple[Event | None, bool]:
    """The first train() of a model that is made in a flow, and whether anything else may set the part's mode."""
    start = next(i for i, each in enumerate(flow.events) if each is made)
    train: Event | None = None
    for event in flow.events[start + 1 :]:
        path = owner_of(event.path)
        if event.what == "mode" and path == made.path:
            if event.get("value") is True and train is None:
                train = event
        elif event.what == "mode" and (is_below(part, path) or is_below(path, made.path)):
            if not _is_apart(path, part):
                return train, True
        elif (
            event.what == "unknown"
            and SWITCHES.search(str(event.get("name", "")))
            and any(is_below(part, each) or is_below(each, made.path) for each in event.get("paths", ()) if each)
        ):
            return train, True
    return train, False


def _is_apart(path: str, part: str) -> bool:
    """Whether a path is that of another part: neither the part, nor in it, nor one that has no name."""
    return "*" not in path and not related(path, part)

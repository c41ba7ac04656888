"""What a finding is about: its place in the model, what was meant to happen there and what did, in a few words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.audit.places import Place
    from frostline.audit.seen import ModelSeen, ModuleSeen, Seen
    from frostline.findings import Finding


@dataclass(frozen=True)
class Subject:
    """What a finding is about.

    Attributes:
        name: the dotted path, with the name of its model where there are several.
        more: how many other entries it concerns.
        type: the class of the module, model or optimizer; empty where it is not known.
        meant: what was meant to happen there; empty where nothing was.
        observed: what did.
    """

    name: str
    more: int = 0
    type: str = ""
    meant: str = ""
    observed: str = ""

    @property
    def contrast(self) -> str:
        """What was meant against what was observed.

        Example:
            >>> Subject("bn", meant="declared frozen", observed="moved").contrast
            'declared frozen, moved'
        """
        return ", ".join(part for part in (self.meant, self.observed) if part)


def subject_of(finding: Finding, seen: Seen) -> Subject:
    """What a finding is about, in what was seen."""
    from frostline.audit.contract import INFERRED
    from frostline.audit.seen import named

    more = max(len(finding.paths) - 1, 0)
    model = seen.model(finding.model) or (seen.models[0] if len(seen.models) == 1 else None)
    optimizer = seen.optimizer(finding.where)
    if model is None or (optimizer is not None and finding.where not in model.tensors):
        return Subject(finding.where or finding.model, more, optimizer.type if optimizer else "")
    if finding.where == model.name and finding.where not in model.tensors and finding.where not in model.modules:
        return Subject(model.name, more, model.type)
    name = named(model, finding.where, seen)
    tensor = model.tensors.get(finding.where)
    if tensor is not None:
        observed = "moved" if tensor.moved else "did not move"
        if tensor.must_stay:
            meant = f"{'inferred' if tensor.must_stay in INFERRED else 'declared'} frozen"
        else:
            meant = _FLAGS[tensor.trainable, tensor.trainable_now]
        return Subject(name, more, tensor.module_type, meant, observed)
    module = model.modules.get(finding.where)
    if module is None:
        return Subject(name, more)
    if module.must_eval:
        meant = f"{'inferred' if module.must_eval in INFERRED else 'declared'} eval"
    else:
        meant = "frozen" if module.frozen else ""
    return Subject(name, more, module.type, meant, _mode_in(model, module))


# What `requires_grad` was at the first training step and at the end; of a buffer neither is.
_FLAGS = {
    (False, False): "",
    (False, True): "unfrozen later",
    (True, False): "frozen later",
    (True, True): "trainable",
}


def _mode_in(model: ModelSeen, module: ModuleSeen) -> str:
    """The mode that a module was in where it trained; empty where it was in both and none is the wrong one.

    The mode at the end says nothing of the moment of a finding: most loops end with a validation.
    """
    from frostline.state.names import is_under

    passes = [phase for phase in model.phases if phase.grad and is_under(module.path, phase.path)]
    trained = [phase for phase in passes if module.path in phase.train_modules]
    if any(module.path not in phase.thawed for phase in trained) and (module.must_eval or len(trained) == len(passes)):
        return "ran in train mode"
    return "ran in eval mode" if passes and not trained and module.kinds else ""


def line_of(place: Place) -> str:
    """A place of source as an editor understands it; empty where it is not known."""
    return str(place) if place.is_known else ""

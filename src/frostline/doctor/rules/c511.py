"""C511: a checkpoint was saved while an adapter was merged."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.audit.events import ModeCall, Save
from frostline.audit.seen import ModelSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import call_at, counted, some
from frostline.findings import Safety, Severity

# What the parts of an adapter are called; only where nothing trained, and the flags do not tell.
_ADAPTER = re.compile(r"lora|adapter|delta", re.IGNORECASE)


def look(seen: Seen) -> Iterator[Found]:
    """Files that have the weights of a merged module and its adapter too: once loaded, it counts twice."""
    told: set[tuple[str, object]] = set()
    for save in seen.of(Save):
        for name in dict.fromkeys(model for model, _ in save.merged):
            model = seen.model(name)
            if model is None or save.whole_module or (name, save.place) in told:
                continue
            twice = [path for owner, path in save.merged if owner == name and _is_twice(path, save, model)]
            if not twice:
                continue
            told.add((name, save.place))
            saved = save.saved[name]
            paths = tuple(p for p in saved if any(p.startswith(f"{path}.") for path in twice) and p in model.tensors)
            evidence = [
                f"merged=True when it was saved: {some(twice)}",
                f"saved, with the adapter folded in: {some([p for p in paths if _is_base(p, model)])}",
                f"saved as well, the adapter: {some([p for p in paths if _is_adapter(p, model)])}",
                "a model that loads both is not merged, and adds the adapter once more",
            ]
            call = _merging(name, save, paths, seen)
            if call is not None:
                evidence.append(f"merged by {call_at(call.place)}")
            yield Found(
                message=f"the checkpoint was saved while {counted(len(twice), 'adapter')} "
                f"{'was' if len(twice) == 1 else 'were'} merged into the weights that are saved with "
                f"{'it' if len(twice) == 1 else 'them'}",
                model=name,
                paths=paths,
                evidence=tuple(evidence),
                remedy=f"{name}.train() before {name}.state_dict()"
                if call is not None
                else "unmerge before saving, or save the merged weights alone",
                severity=Severity.ERROR,
                safety=Safety.UNSAFE,
                place=save.place,
            )


def _is_twice(path: str, save: Save, model: ModelSeen) -> bool:
    inside = [p for p in save.saved.get(model.name, ()) if p.startswith(f"{path}.") and p in model.tensors]
    return any(_is_adapter(p, model) for p in inside) and any(_is_base(p, model) for p in inside)


def _is_adapter(path: str, model: ModelSeen) -> bool:
    tensor = model.tensors[path]
    return tensor.kind == "parameter" and (tensor.trainable or _ADAPTER.search(path) is not None)


def _is_base(path: str, model: ModelSeen) -> bool:
    return path.endswith("weight") and not _is_adapter(path, model)


def _merging(name: str, save: Save, paths: tuple[str, ...], seen: Seen) -> ModeCall | None:
    """The call of ``eval()`` that changed the weights, where one did."""
    calls = seen.of(
        ModeCall, lambda e: e.model == name and not e.mode and e.at < save.at and not set(e.changed).isdisjoint(paths)
    )
    return calls[-1] if calls else None


def sound(seen: Seen) -> str | None:
    """How many adapters were unmerged when their model was saved."""
    adapters = {
        (model.name, path)
        for model in seen.models
        for path, module in model.modules.items()
        if "adapter" in module.kinds and any(model.name in save.saved for save in seen.of(Save))
    }
    if not adapters or any(not adapters.isdisjoint(save.merged) for save in seen.of(Save)):
        return None
    return f"{counted(len(adapters), 'adapter')} not merged when the model was saved"


RULE = Rule(
    code="C511",
    what="Looks, whenever tensors go into a file, for modules that say `merged=True`, and whether both their weight "
    "and the parts of their adapter are saved.",
    why="A merged adapter is folded into the weight. A file that has that weight and the adapter too is loaded into a "
    "fresh model, which is not merged and adds the adapter once more: the update counts twice. Some implementations "
    "merge in `eval()`, so that saving after validation is enough.",
    evidence="The modules that were merged, their tensors in the file, and the `eval()` that merged them; at the save.",
    example='model.eval()  # merges\nvalidate(model)\ntorch.save(model.state_dict(), "adapted.pt")',
    instead="model.eval()\nvalidate(model)\nmodel.train()  # takes the adapter out again\n"
    'torch.save(model.state_dict(), "adapted.pt")',
    remedy="Unmerge before saving, or save the merged weights alone and load them into a model without an adapter.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the weights in the file become others",
    false_alarms="A loader that knows of merged files and subtracts the adapter, or sets `merged`. A file of the "
    "merged weights alone, or of the adapter alone, and a pickled module, which keeps its flag, are not told. An "
    "adapter on a wrong base model leaves no trace at run time.",
    source="peft#1836, peft#918, torchtune#1188, microsoft/LoRA#61",
    look=look,
    sound=sound,
)

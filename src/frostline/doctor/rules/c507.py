"""C507: a checkpoint of the trained part lacks parameters that were trained."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import ModelSeen, Seen, TensorSeen, total
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted, saved_of, some, whole_part
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Parameters that optimizer steps moved and that no file has, where other parameters of the model were saved."""
    for model in seen.models:
        saves, saved = saved_of(model, seen)
        held = [t for t in model.parameters if t.path in saved]
        lost = _lost(model, saved)
        if not held or not lost:
            continue
        part = whole_part(saved, model)
        trained = [t for t in model.parameters if t.moved_in_step]
        evidence = [
            f"saved: {counted(len(held), 'parameter')}: {some([t.path for t in held])}",
            f"trained, and in no file: {some([t.path for t in lost])}",
            f"of {counted(len(trained), 'parameter')} that trained, {len(trained) - len(lost)} are saved",
        ]
        if part:
            evidence.append(f"all of {part} and nothing else was saved, which looks meant")
        elif seen.ended == "stopped":
            evidence.append("the loop was stopped here; a later file may have them")
        yield Found(
            message=f"{counted(len(lost), 'trained parameter')} ({total(lost):,} values) of {model.name} "
            f"{'is' if len(lost) == 1 else 'are'} in no checkpoint",
            model=model.name,
            paths=tuple(t.path for t in lost),
            evidence=tuple(evidence),
            remedy=f"save every parameter that trains: {{n: p for n, p in {model.name}.named_parameters() "
            "if p.requires_grad}, and the buffers",
            severity=Severity.INFO if part else Severity.WARNING if seen.ended == "stopped" else Severity.ERROR,
            safety=Safety.UNSAFE,
            place=saves[-1].place,
            inferred=True,
        )


def _lost(model: ModelSeen, saved: set[str]) -> tuple[TensorSeen, ...]:
    return tuple(
        t for t in model.parameters if t.moved_in_step and t.path not in saved and not saved.intersection(t.aliases)
    )


def sound(seen: Seen) -> str | None:
    """How many trained parameters are in a file."""
    kept = 0
    for model in seen.models:
        saves, saved = saved_of(model, seen)
        if saves and _lost(model, saved):
            return None
        kept += sum(1 for t in model.parameters if saves and t.moved_in_step)
    return f"{counted(kept, 'trained parameter')} went into a file" if kept else None


RULE = Rule(
    code="C507",
    what="Compares what went into files with the parameters that optimizer steps moved.",
    why="A checkpoint of an adapter is made by a filter on names. A new head, the biases, a norm layer or the "
    "embeddings trained too, their names do not match, and they are lost: after loading, the head is random, and the "
    "score is that of chance.",
    evidence="The trained parameters of the model that no file of the run has; at the end of the watch.",
    example='adapter = {n: p for n, p in model.named_parameters() if "lora_" in n}\ntorch.save(adapter, "adapter.pt")',
    instead="trained = {n: p for n, p in model.named_parameters() if p.requires_grad}\n"
    'torch.save(trained, "adapter.pt")',
    remedy="Save what trained, not what is called so; and load it once, strictly, into a fresh model.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the file gets other contents",
    false_alarms="A part that is exported on purpose: where one whole module and nothing else was saved (a backbone "
    "without its projection head), it is information only. Parameters that another file has count as saved. A list or "
    "a single tensor is no checkpoint.",
    source="peft#310, peft#577, peft#1070, peft#3306, sentence-transformers#3980, unsloth PR3317",
    look=look,
    sound=sound,
)

"""What the doctor found as the values that an HTML page and a SARIF file are made of."""

from __future__ import annotations

import linecache
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import frostline
from frostline.cli.doctor_modes import mode_timeline, must_eval
from frostline.cli.doctor_subjects import line_of, subject_of
from frostline.cli.rule_command import rule_texts
from frostline.findings import Finding, Severity
from frostline.report import figures
from frostline.report.contract_lines import ModuleLine, TensorLine
from frostline.report.doctor_page import (
    ComparedPart,
    CrashPart,
    DoctorPage,
    FindingCard,
    GroupLine,
    ModelPart,
    OptimizerPart,
)
from frostline.report.rule_text import RuleText
from frostline.report.sarif import render_sarif

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from frostline.audit.seen import GroupSeen, ModelSeen, OptimizerSeen, Seen, TensorSeen
    from frostline.baseline import Split
    from frostline.doctor import Examination

# Lines of source on either side of the user's line.
_AROUND = 2
_ENDED = {
    "stopped": "the doctor stopped the script after these steps",
    "exited": "the script left by itself (sys.exit)",
}


def doctor_page(
    examination: Examination, *, title: str = "", earlier: Examination | None = None, split: Split | None = None
) -> DoctorPage:
    """What the page of an examination says.

    Args:
        examination: what was found.
        title: what was run; the script, or the models, by default.
        earlier: what the same audit found before remedies were applied.
        split: the findings against a baseline.
    """
    seen = examination.seen
    texts = rule_texts()
    known: frozenset[Finding] = frozenset() if split is None else frozenset(split.known)
    repairable = {finding.id for finding in examination.repairable}
    ordered = [f for f in examination if f not in known] + [f for f in examination if f in known]
    crash = seen.crash
    return DoctorPage(
        title=title or seen.script or ", ".join(model.type for model in seen.models) or "a loop",
        steps=len(seen.steps),
        cost=seen.cost,
        seconds=seen.seconds,
        cards=tuple(_card(f, seen, texts, in_memory=f.id in repairable, known=f in known) for f in ordered),
        rules=tuple(texts.get(code, RuleText(code)) for code in dict.fromkeys(f.code for f in ordered)),
        sound=tuple(examination.sound),
        checked=tuple(examination.checked),
        missed=tuple(seen.missed),
        models=tuple(_model(model, examination) for model in seen.models),
        optimizers=tuple(_optimizer(optimizer, seen) for optimizer in seen.optimizers),
        ended=_ENDED.get(seen.ended, ""),
        crash=None if crash is None else CrashPart(crash.type, crash.text, line_of(crash.place), crash.traceback),
        compared=None if earlier is None else _compared(earlier, examination),
        gone=0 if split is None else len(split.gone),
        facts=tuple(_facts(seen)),
        generator=f"frostline {frostline.__version__}",
    )


def doctor_sarif(examination: Examination, *, known: Collection[Finding] | None = None) -> str:
    """An examination as SARIF 2.1.0.

    Args:
        examination: what was found.
        known: the findings that a baseline has; ``None`` where there is no baseline.
    """
    seen = examination.seen
    texts = rule_texts()
    notes = [(Severity.INFO, f"not looked at: {line}") for line in seen.missed]
    if seen.crash is not None:
        notes.insert(0, (Severity.ERROR, f"the loop ended with {seen.crash.type}: {seen.crash.text}"))
    return render_sarif(
        list(examination),
        [texts[code] for code in examination.checked if code in texts],
        tool="frostline doctor",
        version=frostline.__version__,
        known=known,
        notes=notes,
    )


def _card(finding: Finding, seen: Seen, texts: Mapping[str, RuleText], *, in_memory: bool, known: bool) -> FindingCard:
    from frostline.state.names import fold

    subject = subject_of(finding, seen)
    text = texts.get(finding.code)
    return FindingCard(
        finding=finding,
        subject=subject.name,
        type=subject.type,
        meant=subject.meant,
        observed=subject.observed,
        lines=tuple(lines_around(finding.file, finding.line, finding.source)),
        places=tuple(str(folded) for folded in fold(finding.paths)),
        # It says why the rule's usual remedy is as safe as it is, which another remedy may not be.
        how_safe=text.how_safe if text is not None and text.safety is finding.safety else "",
        in_memory=in_memory,
        known=known,
    )


def lines_around(file: str, line: int, source: str) -> list[tuple[int, str]]:
    """Number and text of the lines around a user's line; nothing where the file is not what it was.

    Example:
        >>> lines_around("nowhere.py", 3, "model(x)")
        []
    """
    lines = linecache.getlines(file) if line else []
    if len(lines) < line or not line or lines[line - 1].strip() != source:
        return []
    first = max(line - _AROUND, 1)
    chosen = [text.rstrip("\n") for text in lines[first - 1 : line + _AROUND]]
    indents = [len(text) - len(text.lstrip()) for text in chosen if text.strip()]
    return [(number, text[min(indents) :]) for number, text in enumerate(chosen, start=first)]


def _facts(seen: Seen) -> Iterable[tuple[str, str]]:
    for model in seen.models:
        parameters = sum(tensor.numel for tensor in model.parameters)
        frozen = sum(tensor.numel for tensor in model.parameters if tensor.must_stay)
        share = f", {figures.percent(frozen / parameters)} frozen" if frozen else ""
        wrapper = f" in {model.wrapper}" if model.wrapper else ""
        label = "Model" if len(seen.models) == 1 else f"Model {model.name}"
        yield label, f"{model.type}{wrapper}, {figures.count(parameters, 'parameter')}{share}"
    yield "Forward passes", figures.count(len(seen.forwards))
    ground = "declared" if any(model.declared for model in seen.models) else "inferred"
    yield "Contract", f"{ground}" + ("" if ground == "declared" else " from flags, modes and optimizers")
    yield "Duration", f"{seen.seconds:.1f} s"
    if len(seen.ranks) > 1:
        yield "Processes", f"{len(seen.ranks)}, told by rank {seen.rank}"


# Models


def _model(model: ModelSeen, examination: Examination) -> ModelPart:
    from frostline.state.names import fold

    seen = examination.seen
    codes = _codes(examination, model.name)
    unowned = [t.path for t in model.parameters if t.trainable_now and t.owner is None] if seen.optimizers else []
    return ModelPart(
        name=model.name,
        type=model.type,
        tensors=tuple(_tensor(tensor, codes.get(tensor.path, ())) for tensor in model.tensors.values()),
        modules=tuple(
            ModuleLine(
                module.path,
                module.type,
                "train" if module.training else "eval",
                _reason(module.must_eval) if must_eval(module, codes) else "",
                codes.get(module.path, ()),
            )
            for module in model.modules.values()
        ),
        modes=mode_timeline(model, seen, codes),
        unowned=tuple(str(folded) for folded in fold(unowned)),
        unowned_count=len(unowned),
    )


def _codes(examination: Examination, model: str) -> dict[str, tuple[str, ...]]:
    """Path to the codes of the findings that name it; what is only to be known is left out."""
    found: dict[str, dict[str, None]] = {}
    for finding in examination:
        if finding.severity is not Severity.INFO and finding.model in {model, ""}:
            for path in finding.paths:
                found.setdefault(path, {}).setdefault(finding.code)
    return {path: tuple(codes) for path, codes in found.items()}


def _tensor(tensor: TensorSeen, codes: tuple[str, ...]) -> TensorLine:
    # A weak ground alone (it stood in eval mode before it trained) is not held against a tensor that no rule speaks of.
    stays = bool(tensor.must_stay) and not (tensor.must_stay == "eval" and tensor.moved and not codes)
    if stays:
        meant = "stay"
    elif tensor.kind == "parameter":
        meant = "train" if tensor.trainable else ""
    else:
        meant = "statistics" if tensor.role.startswith("norm.") else ""
    return TensorLine(
        path=tensor.path,
        module=tensor.module,
        role=tensor.role,
        meant=meant,
        moved=tensor.moved,
        why=_reason(tensor.must_stay) if stays else "",
        written=_written(tensor),
        note=_note(tensor),
        first_moved=tensor.first_moved,
        drift=tuple(tensor.drift) if stays else (),
        codes=codes,
    )


def _reason(reason: str) -> str:
    from frostline.audit.contract import INFERRED, REASONS

    text = REASONS.get(reason, reason)
    return f"inferred: {text}" if reason in INFERRED else text


def _written(tensor: TensorSeen) -> str:
    if not tensor.writes:
        return ""
    write = tensor.writes[0]
    by = "a write past torch's dispatcher" if write.outside else write.op
    return f"written by {by}" + (f" at {line_of(write.place)}" if write.place.is_known else "")


def _note(tensor: TensorSeen) -> str:
    said: list[str] = []
    if not tensor.moved and tensor.trainable and tensor.steps and not tensor.gradients and not tensor.must_stay:
        said.append("never had a gradient")
    if tensor.non_finite:
        said.append("not finite at the end")
    return ", ".join(said)


# Optimizers


def _optimizer(optimizer: OptimizerSeen, seen: Seen) -> OptimizerPart:
    return OptimizerPart(
        name=optimizer.name,
        type=optimizer.type,
        steps=optimizer.steps,
        groups=tuple(_group(number, group, seen) for number, group in enumerate(optimizer.groups)),
        made=line_of(optimizer.made),
        schedulers=tuple(optimizer.schedulers),
    )


def _group(number: int, group: GroupSeen, seen: Seen) -> GroupLine:
    tensors = [tensor for key in group.paths if key[0] and (tensor := seen.tensor(key)) is not None]
    trainable = sum(tensor.trainable_now for tensor in tensors)
    first = group.first_rates[0] if group.first_rates else group.last_rate
    return GroupLine(
        number=number,
        rates=(first, group.last_rate),
        weight_decay=group.settings.get("weight_decay"),
        tensors=len(group.paths),
        trainable=trainable,
        orphans=sum(not model for model, _ in group.paths),
        frozen=len(tensors) - trainable,
        ignored=group.ignored,
    )


# Before and after


def _compared(earlier: Examination, examination: Examination) -> ComparedPart:
    found = earlier.compare(examination)
    pairs = (("errors", Severity.ERROR), ("warnings", Severity.WARNING))
    rows = [(name, len(earlier.of(severity)), len(examination.of(severity))) for name, severity in pairs]
    rows.append(("tensors that were to stay, and moved", _broken(earlier), _broken(examination)))
    rows.append(("found right", len(earlier.sound), len(examination.sound)))
    return ComparedPart(found.gone, found.left, found.new, tuple(rows))


def _broken(examination: Examination) -> int:
    return sum(
        _tensor(tensor, codes.get(tensor.path, ())).state == "broken"
        for model in examination.seen.models
        for codes in [_codes(examination, model.name)]
        for tensor in model.tensors.values()
    )

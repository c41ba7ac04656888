"""Asks every rule about what was seen, drops what is only a consequence, and puts the causes in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from frostline.audit.places import NOWHERE, short
from frostline.audit.seen import Seen
from frostline.doctor.examination import Examination
from frostline.doctor.rule import Found, Rule
from frostline.doctor.rules import all_rules
from frostline.findings import Finding, Safety, Severity
from frostline.state.expected import expect

_WEIGHT = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


def examine(seen: Seen, *, rules: Iterable[Rule] | None = None) -> Examination:
    """Say what went wrong in a loop that was watched, why, where, and what mends it.

    What is only the consequence of another finding is dropped. The worst come first; among equals, what explains more.
    Nothing is changed: remedies are done by :meth:`Examination.apply`.

    Args:
        seen: what :func:`frostline.watch` has seen.
        rules: the rules to ask; all of them if not given.

    Returns:
        The findings, what was found right, and the remedies.

    Raises:
        UnsupportedModel: it is something else, a model for one.

    Example:
        >>> import torch, frostline
        >>> model = torch.nn.Linear(2, 1)
        >>> model.require_grad = False
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with frostline.watch(model, optimizer) as seen:
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> [finding.code for finding in examine(seen)]
        ['F101']
    """
    expect(seen, Seen, "examine", "with fl.watch(model, optimizer) as seen: ..., and then fl.examine(seen)")
    asked = list(all_rules().values()) if rules is None else list(rules)
    found = [(rule, one) for rule in asked for one in _asked(rule, seen)]
    causes = [(rule, one) for rule, one in found if not any(_explains(other, one, rule) for other in found)]
    causes.sort(key=lambda pair: (_WEIGHT[pair[1].severity], -_reach(pair, found)))
    findings: list[Finding] = []
    repairs: dict[str, Callable[[], str]] = {}
    for rule, one in causes:
        finding = _finding(rule, one)
        findings.append(finding)
        if one.repair is not None and one.safety is Safety.SAFE:
            repairs[finding.id] = one.repair
    guilty = {rule.code for rule, _ in found}
    sound = [line for rule in asked if rule.code not in guilty and (line := rule.sound(seen))]
    return Examination(findings, seen, [rule.code for rule in asked], list(dict.fromkeys(sound)), repairs)


def _asked(rule: Rule, seen: Seen) -> list[Found]:
    """What a rule finds; one that fails on a loop nobody thought of must not hide what the others found."""
    try:
        return list(rule.look(seen))
    except Exception as error:
        seen.missed.append(
            f"rule {rule.code} failed ({type(error).__name__}: {error}): what it looks for was not judged"
        )
        return []


def _explains(cause: tuple[Rule, Found], one: Found, rule: Rule) -> bool:
    """Whether a finding is nothing but a consequence of another."""
    by, source = cause
    if source is one or rule.code not in by.explains or (one.model and source.model and one.model != source.model):
        return False
    if not one.paths or not source.paths:
        return True
    return all(any(path == p or path.startswith(f"{p}.") or not p for p in source.paths) for path in one.paths)


def _reach(pair: tuple[Rule, Found], found: list[tuple[Rule, Found]]) -> int:
    """How many other findings it explains."""
    return sum(_explains(pair, one, rule) for rule, one in found)


def _finding(rule: Rule, one: Found) -> Finding:
    place = one.place or NOWHERE
    return Finding(
        code=rule.code,
        severity=one.severity,
        message=one.message,
        where=one.paths[0] if one.paths else one.model,
        evidence="\n".join(one.evidence),
        remedy=one.remedy,
        safety=one.safety,
        paths=one.paths,
        file=short(place.file),
        line=place.line,
        source=place.text,
        model=one.model,
        inferred=one.inferred,
    )

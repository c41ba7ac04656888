"""``frostline rule``."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import frostline
from frostline.cli.completion import codes
from frostline.cli.console import OUTPUT, print_json
from frostline.cli.lint_rules import lint_rule_text
from frostline.errors import FrostlineError
from frostline.findings import CATALOGUE
from frostline.lint.rules import all_rules as all_lint_rules
from frostline.report.rule_text import FAMILIES, RuleText

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from rich.text import Text

    from frostline.lint.rule import LintRule

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline rule
  frostline rule F107
  frostline rule F107 --output-format json
"""

# Who finds what is told neither from watching a loop nor from source.
ELSEWHERE = {
    "F121": "frostline.freeze and the plan that it makes find it",
    "N309": "frostline diagnose and frostline recalibrate find it",
}
_FROM_SOURCE = "it is told from source alone, before anything runs"
_WHERE = {(True, True): "both", (True, False): "doctor", (False, True): "lint", (False, False): "-"}
_NOBODY = "it is a code of the catalogue that nothing looks for yet"
_NAMES = ("what", "why", "evidence", "example", "instead", "remedy", "how_safe", "false_alarms", "source")
# Lines of prose longer than this are hard to read.
_WIDEST = 96


def rule(
    code: Annotated[
        str | None,
        typer.Argument(help="Of the rule; all are listed without one.", metavar="CODE", autocompletion=codes),
    ] = None,
    output_format: Annotated[Literal["text", "json"], typer.Option(help="How it is printed.")] = "text",
) -> None:
    """Print what a rule looks for, why that is bad, how it is mended, how safe that is, and when it is a false alarm.

    A mistake may be found by the doctor, in a loop that runs, and by the linter, in source. Without a code all rules
    are listed with the safety of their remedies.
    """
    if code is None:
        if output_format == "json":
            print_json({"schema_version": 1, "rules": [rule_json(each) for each in CATALOGUE]})
        else:
            _print_list()
        return
    wanted = _known(code)
    if output_format == "json":
        print_json(rule_json(wanted))
    else:
        _print_rule(wanted)


def rule_texts() -> dict[str, RuleText]:
    """Code to text of every rule of the doctor, in the order of the families."""
    from frostline.doctor import all_rules

    return {
        code: RuleText(
            code=code,
            what=each.what,
            why=each.why,
            evidence=each.evidence,
            example=each.example,
            instead=each.instead,
            remedy=each.remedy,
            safety=each.safety,
            how_safe=each.how_safe,
            false_alarms=each.false_alarms,
            source=each.source,
        )
        for code, each in all_rules().items()
    }


def doctor_codes() -> frozenset[str]:
    """The codes that the doctor has a rule for, by the names of their files: importing them would import torch."""
    folder = Path(frostline.__file__).parent / "doctor" / "rules"
    return frozenset(CATALOGUE) & {path.stem.upper() for path in folder.glob("*.py")}


def rule_json(code: str) -> dict[str, Any]:
    """A rule as JSON-ready values: what the doctor says, and under ``lint`` what the linter does.

    Of a code without a rule of the doctor: its title and who finds it.
    """
    found: dict[str, Any] = {"code": code, "title": CATALOGUE[code], "family": FAMILIES[code[0]]}
    if code in doctor_codes():
        found |= {"doctor": True, **_values(rule_texts()[code])}
    else:
        found |= {"doctor": False, "found_by": found_by(code)}
    rule = all_lint_rules().get(code)
    return {**found, "lint": None if rule is None else _values(lint_rule_text(rule))}


def found_by(code: str) -> str:
    """Who finds a mistake that no rule of the doctor looks for.

    Example:
        >>> found_by("N309")
        'frostline diagnose and frostline recalibrate find it'
    """
    return ELSEWHERE.get(code, _FROM_SOURCE if code in all_lint_rules() else _NOBODY)


def _values(text: RuleText) -> dict[str, Any]:
    told = {name: getattr(text, name) for name in _NAMES}
    return {"safety": text.safety.value, **told}


def _known(code: str) -> str:
    """The code as the catalogue has it, whatever its case.

    Raises:
        FrostlineError: the catalogue has no such code; codes like it are named.
    """
    wanted = code.strip().upper()
    if wanted in CATALOGUE:
        return wanted
    near = difflib.get_close_matches(wanted, CATALOGUE, n=12, cutoff=0.5)
    # A digit that is missing and digits in another order are the likeliest slips.
    near.sort(key=lambda each: (not each.startswith(wanted), sorted(each) != sorted(wanted)))
    said = [f"    {each}  {CATALOGUE[each]}" for each in near[:3]]
    raise FrostlineError(
        "\n".join(
            [
                f"there is no rule {code!r}: a code is a letter ({', '.join(FAMILIES)}) and three digits",
                *(["  did you mean:", *said] if said else []),
                "  fix: frostline rule lists all of them",
            ]
        )
    )


def _print_rule(code: str) -> None:
    width = min(OUTPUT.width, _WIDEST)
    _say("\n".join(textwrap.wrap(f"{code}  {CATALOGUE[code]}", width, subsequent_indent=" " * 6)), style="bold")
    lint = all_lint_rules().get(code)
    if code in doctor_codes():
        _print_parts(rule_texts()[code].parts(), width)
        if lint is not None:
            _print_in_source(lint, width)
        return
    _say("")
    _print_prose(f"No rule of the doctor looks for it: {found_by(code)}.", width)
    if lint is not None:
        _print_parts(lint_rule_text(lint).parts(), width)


def _print_parts(parts: list[tuple[str, str, bool]], width: int) -> None:
    for heading, part, is_code in parts:
        _say(f"\n{heading}", style="bold")
        if is_code:  # it is copied, so it stays in its lines
            for line in part.splitlines():
                _say(f"  {line}".rstrip(), style="cyan")
        else:
            _print_prose(part, width)


def _print_in_source(rule: LintRule, width: int) -> None:
    """What the linter says beside the doctor: the mistake and its reasons are the same."""
    _say("\nIn source (frostline lint)", style="bold")
    safety = rule.how_safe if rule.how_safe.startswith(rule.safety.value) else f"{rule.safety.value}: {rule.how_safe}"
    paragraphs = [rule.what, f"Fix safety: {safety}", f"False alarms: {rule.false_alarms}"]
    for number, paragraph in enumerate(paragraphs):
        if number:
            _say("")
        _print_prose(paragraph, width)


def _print_prose(text: str, width: int) -> None:
    for line in text.splitlines():
        for piece in textwrap.wrap(line, width - 2, break_long_words=False) or [""]:
            _say(f"  {piece}".rstrip())


def _print_list() -> None:
    texts, lint = rule_texts(), all_lint_rules()
    width = min(OUTPUT.width, _WIDEST)
    for letter, family in FAMILIES.items():
        _say(f"{family[:1].upper()}{family[1:]}", style="bold")
        for code in (each for each in CATALOGUE if each[0] == letter):
            rule = texts.get(code) or lint.get(code)
            safety = rule.safety.value if rule else "-"
            where = _WHERE[code in texts, code in lint]
            head, *rest = textwrap.wrap(CATALOGUE[code], width - 24, break_long_words=False)
            line = _text(f"  {code}  ", f"{safety:6}  ", f"{where:6}  ", head)
            line.stylize("bold", 2, 6)
            line.stylize({"safe": "green", "unsafe": "yellow"}.get(safety, "dim"), 8, 14)
            line.stylize("dim", 16, 22)
            OUTPUT.print(line, soft_wrap=True)
            for more in rest:
                _say(" " * 24 + more)
        _say("")
    _say(textwrap.fill("Second column: the fix is safe, unsafe (it may change meaning) or manual.", width))
    _say(textwrap.fill("Third column: who finds it, the doctor in a loop that runs, lint in source.", width))
    _say(textwrap.fill("A - is for other commands. frostline rule CODE prints a rule.", width))


def _text(*parts: str) -> Text:
    from rich.text import Text

    return Text("".join(parts))


def _say(line: str, *, style: str = "") -> None:
    OUTPUT.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)

"""``frostline rule``."""

from __future__ import annotations

import difflib
import textwrap
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frostline.cli.console import OUTPUT, print_json
from frostline.errors import FrostlineError
from frostline.findings import CATALOGUE
from frostline.report.rule_text import FAMILIES, RuleText

if TYPE_CHECKING:  # importing them would import torch, and `--help` should not wait for that
    from rich.text import Text

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline rule
  frostline rule F107
  frostline rule F107 --output-format json
"""

# Who finds what is not told from watching a loop.
ELSEWHERE = {
    "F121": "frostline.freeze and the plan that it makes find it",
    "N309": "frostline diagnose and frostline recalibrate find it",
}
_FROM_SOURCE = "it is told from source alone, before anything runs"
# Lines of prose longer than this are hard to read.
_WIDEST = 96


def rule(
    code: Annotated[str | None, typer.Argument(help="Of the rule; all are listed without one.", metavar="CODE")] = None,
    output_format: Annotated[Literal["text", "json"], typer.Option(help="How it is printed.")] = "text",
) -> None:
    """Print what a rule looks for, why that is bad, how it is mended, how safe that is, and when it is a false alarm.

    Without a code all rules are listed with the safety of their remedies.
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


def rule_json(code: str) -> dict[str, Any]:
    """A rule as JSON-ready values; of a code without a rule of the doctor, its title and who finds it."""
    found: dict[str, Any] = {"code": code, "title": CATALOGUE[code], "family": FAMILIES[code[0]]}
    text = rule_texts().get(code)
    if text is None:
        return {**found, "doctor": False, "found_by": found_by(code)}
    names = ("what", "why", "evidence", "example", "instead", "remedy", "how_safe", "false_alarms", "source")
    return {
        **found,
        "doctor": True,
        "safety": text.safety.value,
        **{name: getattr(text, name) for name in names},
    }


def found_by(code: str) -> str:
    """Who finds a mistake that no rule of the doctor looks for.

    Example:
        >>> found_by("H604")
        'it is told from source alone, before anything runs'
    """
    return ELSEWHERE.get(code, _FROM_SOURCE)


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
    text = rule_texts().get(code)
    width = min(OUTPUT.width, _WIDEST)
    lines = textwrap.wrap(f"{code}  {CATALOGUE[code]}", width, subsequent_indent=" " * 6)
    _say("\n".join(lines), style="bold")
    if text is None:
        said = f"No rule of the doctor looks for it: {found_by(code)}."
        _say("\n" + textwrap.fill(said, width, initial_indent="  ", subsequent_indent="  "))
        return
    for heading, part, is_code in text.parts():
        _say(f"\n{heading}", style="bold")
        for line in part.splitlines():
            # Code is copied, so it stays in its lines.
            whole = [line] if is_code else textwrap.wrap(line, width - 2, break_long_words=False)
            for piece in whole or [""]:
                _say(f"  {piece}".rstrip(), style="cyan" if is_code else "")


def _print_list() -> None:
    texts = rule_texts()
    width = min(OUTPUT.width, _WIDEST)
    for letter, family in FAMILIES.items():
        _say(f"{family[:1].upper()}{family[1:]}", style="bold")
        for code in (each for each in CATALOGUE if each[0] == letter):
            text = texts.get(code)
            safety = text.safety.value if text else "-"
            head, *rest = textwrap.wrap(CATALOGUE[code], width - 16, break_long_words=False)
            line = _text(f"  {code}  ", f"{safety:6}  ", head)
            line.stylize("bold", 2, 6)
            line.stylize({"safe": "green", "unsafe": "yellow"}.get(safety, "dim"), 8, 14)
            OUTPUT.print(line, soft_wrap=True)
            for more in rest:
                _say(" " * 16 + more)
        _say("")
    _say("Second column: the fix is safe, unsafe (it may change meaning) or manual.")
    _say("A - is not for the doctor. frostline rule CODE prints a rule.")


def _text(*parts: str) -> Text:
    from rich.text import Text

    return Text("".join(parts))


def _say(line: str, *, style: str = "") -> None:
    OUTPUT.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)

"""A page for each rule of the catalogue, from what doctor and linter say of themselves."""

from __future__ import annotations

import re
from functools import cache

from frostline.cli.lint_rules import lint_rule_texts
from frostline.cli.rule_command import found_by, rule_texts
from frostline.findings import CATALOGUE
from frostline.report.rule_text import FAMILIES, RuleText

# What Markdown would read as markup in a sentence that is plain text.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


def pages() -> dict[str, str]:
    """Path to text: the list of all rules, and a page for each."""
    return {"rules/index.md": _list(), **{f"rules/{code}.md": _page(code) for code in CATALOGUE}}


def navigation() -> list[object]:
    """The entries of the navigation: the list, then the rules by what they are about."""
    families = [{_begun(family): [f"rules/{code}.md" for code in _of(letter)]} for letter, family in FAMILIES.items()]
    return ["rules/index.md", *families]


@cache
def _texts() -> tuple[dict[str, RuleText], dict[str, RuleText]]:
    return rule_texts(), lint_rule_texts()


def _of(letter: str) -> list[str]:
    return [code for code in CATALOGUE if code[0] == letter]


def _list() -> str:
    lines = [
        "# Rules",
        "",
        "Each mistake has a code that stays. The doctor finds it in a loop that runs, the linter in source.",
        "`frostline rule CODE` prints the same texts as these pages.",
    ]
    for letter, family in FAMILIES.items():
        lines += ["", f"## {_begun(family)}", "", "| code | mistake | found by | fix |", "|---|---|---|---|"]
        lines += [f"| [{code}]({code}.md) | {_plain(CATALOGUE[code])} | {_finders(code)} | {_safety(code)} |"
                  for code in _of(letter)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _page(code: str) -> str:
    doctor, lint = (texts.get(code) for texts in _texts())
    lines = [
        f"# {code} {_plain(CATALOGUE[code])}",
        "",
        f"Family: {FAMILIES[code[0]]}. Found by: {_finders(code)}. Fix: {_safety(code)}.",
    ]
    if doctor is None:
        lines += ["", f"No rule of the doctor looks for it: {_plain(found_by(code))}."]
    first = doctor or lint
    if first is not None:
        lines += _parts(first, level="##")
    if doctor is not None and lint is not None:
        # The mistake and its reasons are the same; what differs is how it is seen and mended.
        lines += ["", "## In source: `frostline lint`"]
        lines += _parts(lint, level="###", only=("What it does", "Fix safety", "False alarms"))
    return "\n".join(lines) + "\n"


def _parts(text: RuleText, *, level: str, only: tuple[str, ...] = ()) -> list[str]:
    lines: list[str] = []
    for heading, part, is_code in text.parts():
        if only and heading not in only:
            continue
        lines += ["", f"{level} {heading}", ""]
        # Examples of mistakes are shown, not run: `py` is highlighted, and the tests run `python` alone.
        lines += ["```py", *part.splitlines(), "```"] if is_code else [_plain(part)]
    return lines


def _finders(code: str) -> str:
    doctor, lint = _texts()
    named = [name for name, has in (("doctor", code in doctor), ("lint", code in lint)) if has]
    return ", ".join(named) or _plain(found_by(code))


def _safety(code: str) -> str:
    doctor, lint = _texts()
    rule = doctor.get(code) or lint.get(code)
    return rule.safety.value if rule else "none"


def _plain(text: str) -> str:
    """The text as Markdown that shows it as it is; what stands between backticks stays code."""
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(piece if at % 2 else _MARKUP.sub(r"\\\1", piece) for at, piece in enumerate(pieces))


def _begun(words: str) -> str:
    return words[:1].upper() + words[1:]

"""``frostline rule``: the list, one rule, JSON, codes of others, and codes that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from frostline.cli.rule_command import ELSEWHERE, doctor_codes, found_by, rule_texts
from frostline.doctor import all_rules
from frostline.findings import CATALOGUE
from frostline.lint.rules import all_rules as all_lint_rules
from frostline.report.rule_text import FAMILIES


def test_the_list_has_every_code_once_with_its_safety_and_who_finds_it(command: Any) -> None:
    done = command("rule")
    assert (done.code, done.err) == (0, "")
    rows = [line for line in done.out.splitlines() if line[2:6] in CATALOGUE]
    assert [row[2:6] for row in rows] == [code for letter in FAMILIES for code in CATALOGUE if code[0] == letter]
    texts = rule_texts()
    for row in rows:
        code, safety, where = row.split()[:3]
        rule = texts.get(code) or all_lint_rules().get(code)
        assert safety == (rule.safety.value if rule else "-")
        assert where == ["-", "doctor", "lint", "both"][(code in texts) + 2 * (code in all_lint_rules())]
        assert row[24:] == CATALOGUE[code][: len(row) - 24], "the title stands beside it"
    assert max(map(len, done.out.splitlines())) <= 80
    assert "Freezing\n" in done.out


def test_a_rule_says_everything(command: Any) -> None:
    done = command("rule", "F107")
    rule = all_rules()["F107"]
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert done.out.startswith(f"F107  {CATALOGUE['F107']}\n\nWhat it does\n  ")
    for text in (rule.what, rule.why, rule.evidence, rule.remedy, rule.how_safe, rule.false_alarms, rule.source):
        assert " ".join(text.split()) in said
    headings = [line for line in done.out.splitlines() if line and line[0] != " "][1:]
    assert headings == [
        "What it does",
        "Why it is bad",
        "What is seen",
        "Example",
        "Use instead",
        "Remedy",
        "Fix safety",
        "False alarms",
        "Source",
        *(["In source (frostline lint)"] if "F107" in all_lint_rules() else []),
    ]
    for line in (*rule.example.splitlines(), *rule.instead.splitlines()):
        assert f"\n  {line}\n" in done.out, "code is not wrapped, because it is copied"


@pytest.mark.parametrize("code", sorted(all_rules()))
def test_every_rule_prints_in_eighty_columns_but_for_code(command: Any, code: str) -> None:
    done = command("rule", code)
    rule = all_rules()[code]
    code_lines = {f"  {line}".rstrip() for line in (*rule.example.splitlines(), *rule.instead.splitlines())}
    assert done.code == 0
    wide = [line for line in done.out.splitlines() if len(line) > 80 and line not in code_lines and " " in line.strip()]
    assert wide == []


def test_case_and_spaces_do_not_matter(command: Any) -> None:
    assert command("rule", " f107 ").out == command("rule", "F107").out


def test_json(command: Any) -> None:
    one = json.loads(command("rule", "F107", "--output-format", "json").out)
    rule = all_rules()["F107"]
    assert one["code"] == "F107"
    assert (one["title"], one["family"], one["doctor"]) == (CATALOGUE["F107"], "freezing", True)
    assert (one["safety"], one["example"], one["false_alarms"]) == ("safe", rule.example, rule.false_alarms)
    every = json.loads(command("rule", "--output-format", "json").out)
    assert every["schema_version"] == 1
    assert [row["code"] for row in every["rules"]] == list(CATALOGUE)
    assert one in every["rules"]
    assert {row["code"] for row in every["rules"] if row["doctor"]} == set(all_rules())


def test_a_code_without_a_rule_of_the_doctor_says_who_finds_it(command: Any) -> None:
    without = [code for code in CATALOGUE if code not in all_rules()]
    assert set(ELSEWHERE) <= set(without)
    for code in without:
        done = command("rule", code)
        assert (done.code, done.err) == (0, "")
        said = " ".join(done.out.split())
        assert said.startswith(f"{code} {CATALOGUE[code]} No rule of the doctor looks for it: {found_by(code)}.")
        assert json.loads(command("rule", code, "--output-format", "json").out)["found_by"] == found_by(code)


@pytest.mark.parametrize(("code", "near"), [("F170", "F107"), ("M20", "M20"), ("107", "F107"), ("FF107", "F107")])
def test_an_unknown_code_names_those_like_it(command: Any, code: str, near: str) -> None:
    done = command("rule", code)
    assert (done.code, done.out) == (2, "")
    first, meant, nearest, *_, fix = done.err.splitlines()
    assert first.startswith(f"error: there is no rule {code!r}: a code is a letter (F, M, N, O, S, C, H, T, D)")
    assert meant == "  did you mean:"
    assert nearest.strip().startswith(near)
    assert fix == "  fix: frostline rule lists all of them"


def test_what_is_like_no_code_is_not_guessed(command: Any) -> None:
    done = command("rule", "batchnorm")
    assert (done.code, done.out) == (2, "")
    assert "did you mean" not in done.err
    assert command("rule", "F107", "--output-format", "yaml").code == 2


def test_the_files_of_the_doctors_rules_are_named_after_their_codes() -> None:
    assert doctor_codes() == set(all_rules())


def test_a_mistake_that_both_find_has_a_part_for_source(command: Any) -> None:
    code = next(code for code in all_lint_rules() if code in all_rules())
    rule = all_lint_rules()[code]
    before, heading, part = command("rule", code).out.partition("\nIn source (frostline lint)\n")
    assert heading
    assert before.startswith(f"{code}  ")
    said = " ".join(part.split())
    assert said.startswith(" ".join(rule.what.split()))
    assert "Fix safety: " in said
    for text in (rule.how_safe, f"False alarms: {rule.false_alarms}"):
        assert " ".join(text.split()) in said
    assert max(map(len, part.splitlines())) <= 80
    told = json.loads(command("rule", code, "--output-format", "json").out)
    assert told["doctor"] is True
    assert told["what"] == all_rules()[code].what
    assert (told["lint"]["what"], told["lint"]["safety"]) == (rule.what, rule.safety.value)


def test_what_is_told_from_source_alone_is_told_in_full_and_without_torch() -> None:
    rule = all_lint_rules()["F101"]
    program = (
        "import sys\nfrom frostline.cli import main, rule_command\nsys.argv = ['frostline', 'rule', 'F101']\n"
        "rule_command.doctor_codes = frozenset\n"  # as if the doctor had no rule for it
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "False\n")
    said = " ".join(done.stdout.split())
    for text in (rule.what, rule.why, rule.remedy, rule.how_safe, rule.false_alarms, rule.source):
        assert " ".join(text.split()) in said
    for line in (*rule.example.splitlines(), *rule.instead.splitlines()):
        assert f"\n  {line}\n" in done.stdout


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom frostline.cli import main\nsys.argv = ['frostline', 'rule', '--help']\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "\n    frostline rule F107\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80

"""Which rules run: codes, their first characters, the longest wins; what does not exist is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import LintSettingsError
from frostline.findings import CATALOGUE
from frostline.lint.selection import RuleSelection
from frostline.lint.settings import Settings, read_settings

LINTED = frozenset({"F101", "F102", "F107", "M201", "M203", "C503"})


def chosen(**entries: list[str]) -> set[str]:
    return set(RuleSelection.of(LINTED, **entries).codes)  # type: ignore[arg-type]


def test_everything_by_default() -> None:
    assert RuleSelection.of(LINTED).codes == LINTED


@pytest.mark.parametrize(
    ("select", "ignore", "extend", "wanted"),
    [
        (["ALL"], [], [], set(LINTED)),
        (["all"], ["F"], [], {"M201", "M203", "C503"}),
        (["F"], [], [], {"F101", "F102", "F107"}),
        (["F10"], [], [], {"F101", "F102", "F107"}),
        (["f107", " m2 "], [], [], {"F107", "M201", "M203"}),
        (["F"], ["F107"], [], {"F101", "F102"}),
        (["F107"], ["F"], [], {"F107"}),
        (["F10"], ["F"], [], {"F101", "F102", "F107"}),
        (["F"], ["F10"], ["F107"], {"F107"}),
        (["F107"], ["F107"], [], set()),
        (["F"], ["F"], ["F1"], {"F101", "F102", "F107"}),
        (["M"], [], ["C503"], {"M201", "M203", "C503"}),
        (["ALL"], ["ALL"], [], set()),
        (["F101"], ["ALL"], [], {"F101"}),
        ([], [], [], set()),
        ([], [], ["M203"], {"M203"}),
    ],
)
def test_the_longest_entry_decides(select: list[str], ignore: list[str], extend: list[str], wanted: set[str]) -> None:
    assert chosen(select=select, ignore=ignore, extend_select=extend) == wanted


PREFIXES = sorted({code[:size] for code in LINTED for size in (1, 2, 3, 4)} | {"ALL"})
ENTRIES = st.lists(st.sampled_from(PREFIXES), max_size=4)


@given(ENTRIES, ENTRIES, ENTRIES)
def test_order_and_case_do_not_count(select: list[str], ignore: list[str], extend: list[str]) -> None:
    first = chosen(select=select, ignore=ignore, extend_select=extend)
    again = chosen(select=[*extend, *reversed(select)], ignore=[each.lower() for each in reversed(ignore)])
    assert first == again

    def length(code: str, entries: list[str]) -> int:
        return max((len(e) if e != "ALL" else 0 for e in entries if e == "ALL" or code.startswith(e)), default=-1)

    assert first == {code for code in LINTED if length(code, select + extend) > length(code, ignore)}


def refusal(**entries: list[str]) -> str:
    with pytest.raises(LintSettingsError) as caught:
        chosen(**entries)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_unknown_code_names_near_ones_with_their_titles() -> None:
    told = refusal(select=["F170"])
    assert told.splitlines()[0] == "no rule of the linter is called 'F170', asked for by select"
    assert f"    F107  {CATALOGUE['F107']}" in told.splitlines()


def test_nothing_near_says_what_codes_look_like() -> None:
    assert refusal(ignore=["XYZ"]) == (
        "no rule of the linter is called 'XYZ', asked for by ignore\n"
        "  codes begin with C, F, M; ALL stands for every rule; see frostline rule"
    )
    assert refusal(extend_select=[""]).startswith("no rule of the linter is called '', asked for by extend-select\n")


def test_a_code_that_only_the_doctor_finds_is_told_so() -> None:
    assert refusal(select=["f112"]) == (
        "no rule of the linter is called 'f112', asked for by select\n"
        "  F112 is seen at run time only: frostline doctor\n"
        f"  F112  {CATALOGUE['F112']}"
    )
    assert refusal(select=["T"]) == (
        "no rule of the linter is called 'T', asked for by select\n"
        "  T701, T702, T703, T704 are seen at run time only: frostline doctor"
    )


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in refusal(select=["\x1b[31m"])


def test_settings_say_where_it_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.frostline.lint]\nignore = ["Q"]\nper-file-ignores = {"a.py" = ["F1", "Z"]}\n')
    settings = read_settings(tmp_path)
    with pytest.raises(LintSettingsError) as caught:
        RuleSelection.from_settings(settings, LINTED)
    assert f"'Q', asked for by {file}, key tool.frostline.lint.ignore\n" in str(caught.value)
    with pytest.raises(LintSettingsError) as caught:
        RuleSelection.from_settings(settings.overridden(ignore=["F1"], select=["Y9"]), LINTED)
    assert "'Y9', asked for by option --select\n" in str(caught.value)
    with pytest.raises(LintSettingsError) as caught:
        RuleSelection.from_settings(settings.overridden(ignore=["F1"]), LINTED)
    assert f"'Z', asked for by {file}, key tool.frostline.lint.per-file-ignores\n" in str(caught.value)


def test_single_files_leave_rules_out() -> None:
    settings = Settings(
        select=("F", "M"),
        per_file_ignores={"tests/*": ("M", "F107"), "*_pb2.py": ("ALL",), "gen/x.py": ("C5",)},
        root=Path("/home"),
    )
    selection = RuleSelection.from_settings(settings, LINTED)
    assert selection.codes == {"F101", "F102", "F107", "M201", "M203"}
    assert selection.codes_for("/home/train.py") == selection.codes
    assert selection.codes_for("/home/tests/deep/test_x.py") == {"F101", "F102"}
    assert selection.codes_for("/home/deep/x_pb2.py") == frozenset()
    assert selection.codes_for("/home/gen/x.py") == selection.codes
    assert selection.codes_for("/elsewhere/tests/x.py") == selection.codes


def test_it_is_frozen() -> None:
    selection = RuleSelection.of(LINTED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        selection.codes = frozenset()  # type: ignore[misc]

"""The table of benchmarks is what one command writes, from figures that are there, with commands that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import page
import pytest

ROOT = Path(__file__).resolve().parents[1]


def results_in(folder: Path, settings: dict[str, object], *comparisons: dict[str, object]) -> Path:
    text = json.dumps({"settings": settings, "machine": {"torch_threads": 1}, "comparisons": comparisons})
    (folder / "step_with_hold.json").write_text(text)
    return folder


def comparison(**changed: object) -> dict[str, object]:
    return {"name": "a / b", "goal": 1.01, "median": 0.972, "quartiles": [0.9, 1.1], "met": True} | changed


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| measured")]


def test_the_committed_page_is_what_the_command_writes() -> None:
    committed = page.PAGE.read_text(encoding="utf-8")
    assert page.page_with(page.section(), committed) == committed, "run python benchmarks/page.py"


def test_every_file_of_results_is_on_the_page_with_a_command_that_exists() -> None:
    text = page.section()
    commands = re.findall(r"`python (benchmarks/\w+\.py)`", text)
    assert sorted(commands) == sorted(f"benchmarks/{path.stem}.py" for path in (page.HERE / "results").glob("*.json"))
    assert all((ROOT / command).is_file() for command in commands)


def test_a_goal_that_is_missed_is_called_so_and_counted(tmp_path: Path) -> None:
    folder = results_in(
        tmp_path,
        {"rounds": 21},
        comparison(),
        comparison(name="late", median=1.2, met=False),
        comparison(name="no goal", goal=None, met=None),
    )
    text = page.section(folder)
    assert "2 comparisons have a goal: 1 met it, 1 **missed** it" in text
    assert rows(text)[:3] == [
        "| a / b | 1.01 | 0.972 | 0.900 to 1.100 | met |",
        "| late | 1.01 | 1.200 | 0.900 to 1.100 | **missed** |",
        "| no goal | none | 0.972 | 0.900 to 1.100 |  |",
    ]
    assert "Repeated by `python benchmarks/step_with_hold.py` (21 rounds, 1 thread)." in text


@pytest.mark.parametrize("goals", [0.1, {"quick": 0.1, "slow": 0.1}])
def test_goals_in_seconds_are_judged_from_the_figures(tmp_path: Path, goals: object) -> None:
    folder = results_in(tmp_path, {"seconds": {"quick": 0.0154, "slow": 1.234}, "goal_seconds": goals})
    assert rows(page.section(folder))[:2] == [
        "| quick | 100 ms | 15.4 ms |  | met |",
        "| slow | 100 ms | 1.23 s |  | **missed** |",
    ]


def test_a_bar_in_a_name_does_not_end_its_cell(tmp_path: Path) -> None:
    assert rows(page.section(results_in(tmp_path, {}, comparison(name="a | b"))))[0].startswith("| a \\| b | 1.01 |")


@pytest.mark.parametrize("text", ["", f"{page.BEGIN}\n", f"{page.END}\n{page.BEGIN}\n", f"{page.BEGIN}{page.END}" * 2])
def test_a_page_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each, in this order"):
        page.page_with("any", text)


def test_what_is_written_by_hand_around_the_section_stays() -> None:
    old = f"above\n{page.BEGIN}\nold\n{page.END}\nbelow\n"
    assert page.page_with("new", old) == f"above\n{page.BEGIN}\nnew\n{page.END}\nbelow\n"
    assert page.page_with("new", page.page_with("new", old)) == page.page_with("new", old)

"""A mistake in a command line names what was meant; examples in the help are command lines that exist."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.commands import COMMANDS, real_command
from frostline.cli.usage import nearest, with_near_paths


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fintune"], "error: frostline has no command 'fintune'\n  did you mean: finetune\n"),
        (["--json"], "error: frostline has no option --json\n  fix: "),
        (["finetune", "--epoch", "3"], "has no option --epoch\n  did you mean: --epochs\n"),
        (["finetune", "--strateg", "x"], "has no option --strateg\n  did you mean: --strategy\n"),
        (
            ["lint", "--output-format", "jsn"],
            "error: --output-format jsn: there is no such one\n  did you mean: json\n",
        ),
        (
            ["finetune", "--strategy", "hed"],
            "--strategy hed: there is no such one.\n  fix: did you mean 'head'? one of",
        ),
        (["finetune", "."], "did you mean: frostline finetune --data .\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_nearest_name_is_told(command: Any, arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_what_is_like_nothing_has_no_nearest_name() -> None:
    assert nearest("zzz", COMMANDS) == []


def test_a_path_beside_the_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.pth").touch()
    wrong = tmp_path / "modle.pth"
    said = with_near_paths(f"the checkpoint {wrong} does not exist\n  fix: x", ["inspect", str(wrong)])
    assert said == f"the checkpoint {wrong} does not exist\n  did you mean: {tmp_path / 'model.pth'}\n  fix: x"
    assert with_near_paths("nothing like it", [str(wrong)]) == "nothing like it"


def examples() -> list[list[str]]:
    lines: list[list[str]] = []
    for name in COMMANDS:
        text = real_command(name).epilog.replace("\\\n", " ")
        lines += [shlex.split(line) for line in text.splitlines() if line.strip().startswith("frostline ")]
    return lines


def test_every_command_has_examples() -> None:
    assert {words[1] for words in examples()} == set(COMMANDS)


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_an_example_is_a_command_line_that_exists(words: list[str]) -> None:
    words = words[: words.index(">")] if ">" in words else words
    real_command(words[1]).make_context(words[1], words[2:], resilient_parsing=False)


def test_the_twin_with_an_option_that_does_not_exist_fails() -> None:
    with pytest.raises(Exception, match="No such option: --epoch"):
        real_command("finetune").make_context("finetune", ["--epoch", "3"])

"""Colour: what the sequences are, and where there is none."""

from __future__ import annotations

import pytest

from frostline.cli.paint import Paint, wants_colour


class Terminal:
    def isatty(self) -> bool:
        return True


class Pipe:
    def isatty(self) -> bool:
        return False


def test_a_text_is_wrapped_or_left_alone() -> None:
    assert Paint(True)("F101", "bold", "red") == "\x1b[1;31mF101\x1b[0m"
    assert Paint(True)("", "red") == ""
    assert Paint(True)("F101") == "F101"
    assert Paint(False)("F101", "bold", "red") == "F101"


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"TERM": "xterm-256color"}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Pipe(), {}, False),
        (Pipe(), {"FORCE_COLOR": "1"}, True),
        (Pipe(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_a_terminal_has_colour_unless_it_is_unwanted(
    stream: Terminal | Pipe, environment: dict[str, str], wanted: bool
) -> None:
    assert wants_colour(stream, environment) is wanted

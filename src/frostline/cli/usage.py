"""What is said of a command line that is wrong: what was given, the nearest name, and how to see the rest.

The parser's exceptions are told apart by what they carry. Their classes have moved between versions of typer, which
brings a parser of its own from 0.22 on.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from frostline.errors import name_some

_NO_COMMAND = re.compile(r"No such command '(?P<name>.*?)'")
_NO_CHOICE = re.compile(r"'(?P<value>[^']*)' is not one of (?P<choices>.*?)\.?$")


def told(error: Any) -> str:
    """A mistake in a command line as one message, of two or three lines.

    Args:
        error: what the parser raised.
    """
    context = getattr(error, "ctx", None)
    path = "frostline" if context is None else context.command_path
    lines = _unknown_command(error, path) or _unknown_option(error, path) or _unknown_choice(error)
    if lines is None:
        lines = [_small(error.format_message())]
        lines += [] if context is None else _meant(lines[0], context)
        lines.append(f"fix: {path} --help says what it takes")
    return "\n  ".join(lines)


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names that a word may be a slip of, the likeliest first; those that it begins come before others.

    Example:
        >>> nearest("fintune", ["finetune", "inspect"]), nearest("--strat", ["--strategy", "--std", "--stride"])
        (['finetune'], ['--strategy', '--stride', '--std'])
    """
    names = list(dict.fromkeys(known))
    begun = [name for name in names if len(word.strip("-")) > 1 and name.startswith(word)]
    close = get_close_matches(word, names, n=most, cutoff=0.6)
    return list(dict.fromkeys([*begun, *close]))[:most]


def did_you_mean(word: str, known: Iterable[str]) -> list[str]:
    """The line that names them; none where nothing is near."""
    near = nearest(word, known)
    return [f"did you mean: {', '.join(near)}"] if near else []


def one_of(given: str, known: Sequence[str]) -> str:
    """The fix for a value that is not among those that there are.

    Example:
        >>> one_of("crpo", ["crop", "none"])
        "did you mean 'crop'? one of crop, none"
    """
    near = nearest(given, known, most=1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}one of {', '.join(known)}"


def _unknown_command(error: Any, path: str) -> list[str] | None:
    found = _NO_COMMAND.match(getattr(error, "message", ""))
    if found is None:
        return None
    name = found["name"]
    known = error.ctx.command.list_commands(error.ctx)
    return [
        f"error: {path} has no command {name!r}",
        *did_you_mean(name.lower(), known),
        f"fix: {path} --help lists the commands",
    ]


def _unknown_option(error: Any, path: str) -> list[str] | None:
    if not hasattr(error, "possibilities"):
        return None
    command = error.ctx.command
    options = [name for param in command.get_params(error.ctx) for name in _names(param) if name.startswith("--")]
    fix = f"fix: {path} --help lists the options"
    if hasattr(command, "list_commands"):
        fix += "; those of a command stand behind its name"
    return [f"error: {path} has no option {error.option_name}", *_slips(error.option_name, options), fix]


def _slips(given: str, options: Sequence[str]) -> list[str]:
    """The dashes that all options share make none of them like another."""
    near = nearest(given.strip("-"), [name[2:] for name in options])
    return [f"did you mean: {', '.join(f'--{name}' for name in near)}"] if near else []


def _unknown_choice(error: Any) -> list[str] | None:
    found = _NO_CHOICE.search(getattr(error, "message", ""))
    if found is None or getattr(error, "param", None) is None:
        return None
    choices = re.findall(r"'([^']*)'", found["choices"])
    option = max(_names(error.param), key=len)
    value = found["value"]
    return [
        f"error: {option} {value}: there is no such one",
        *did_you_mean(value.lower(), choices),
        f"fix: one of {', '.join(choices)}",
    ]


def _meant(message: str, context: Any) -> list[str]:
    """What stood there may be what an option takes: ``frostline finetune photos``, ``--freeze layer1 layer2``."""
    found = re.search(r"unexpected extra argument\S* \((.*)\)", message)
    before = context.params.get("freeze")
    if found is not None and before and not Path(found[1]).exists():
        parts = [*before, *found[1].split()]
        return [f"did you mean: {context.command_path} {' '.join(f'--freeze {shlex.quote(each)}' for each in parts)}"]
    options = {name for param in context.command.get_params(context) for name in _names(param)}
    if found is None or "--data" not in options:
        return []
    given = found[1]
    return [f"did you mean: {context.command_path} --data {shlex.quote(given)}"] if Path(given).exists() else []


def _names(param: Any) -> Sequence[str]:
    return [*param.opts, *param.secondary_opts]


def _small(message: str) -> str:
    """The parser's own sentence, as ours begin and end."""
    message = message.replace("Value error, ", "").replace("argument(s)", "argument")
    return f"error: {message[:1].lower()}{message[1:].rstrip('.')}"


def with_near_paths(message: str, arguments: Sequence[str]) -> str:
    """A message that a path does not exist, with the paths beside it whose names are near.

    Args:
        message: of an error; others are given back as they are.
        arguments: of the program, which the path is one of.

    Example:
        >>> with_near_paths("the checkpoint modle.pth does not exist", [])
        'the checkpoint modle.pth does not exist'
    """
    if "does not exist" not in message:
        return message
    for argument in arguments:
        path = Path(argument.partition("=")[2] if argument.startswith("--") else argument)
        if path.name and str(path) in message and not path.exists():
            near = _beside(path)
            if near:
                first, newline, rest = message.partition("\n")
                return f"{first}\n  did you mean: {name_some(near)}{newline}{rest}"
    return message


def _beside(path: Path) -> list[str]:
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return []
    return [str(path.parent / name) for name in nearest(path.name, names)]

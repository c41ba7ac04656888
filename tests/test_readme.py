"""What the README shows is what happens."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks() -> list[tuple[str, str]]:
    """Language and text of each code block."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append((line[3:], []))
        elif inside:
            found[-1][1].append(line)
    return [(language, "\n".join(lines) + "\n") for language, lines in found]


def test_the_python_blocks_print_the_texts_below_them() -> None:
    """They are read from top to bottom: a later one goes on where the one before it ended."""
    every = blocks()
    said = [i for i, (language, _) in enumerate(every) if language == "python"]
    assert len(said) == 5
    print_rule = 'print("-----")\n'
    command = [sys.executable, "-W", "error", "-c", print_rule.join(every[i][1] for i in said)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [every[i + 1] for i in said] == [("text", text) for text in done.stdout.split("-----\n")]


def test_exactly_two_commands_install() -> None:
    lines = [line for _, text in blocks() for line in text.splitlines() if line.startswith("python -m pip install")]
    assert lines == [
        'python -m pip install -c constraints.txt ".[all]" && frostline finetune',
        'python -m pip install -c constraints.txt -e ".[all,dev]" && python -m pytest',
    ]


def test_the_linter_says_of_the_script_what_stands_below_it(tmp_path: Path) -> None:
    every = blocks()
    (shown,) = [i for i, (language, _) in enumerate(every) if language == "py"]
    (tmp_path / "train.py").write_text(every[shown][1])
    command = [sys.executable, "-m", "frostline", "lint", "--output-format", "concise", "--isolated", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert every[shown + 1] == ("text", done.stdout + done.stderr)

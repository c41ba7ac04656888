"""Starting is quick: what can be said without a model does not wait for torch, and the import adds little to torch's.

Times here are those of the processor, which do not depend on who else uses the machine; `benchmarks/start_up.py`
measures what a user waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from frostline.cli.commands import COMMANDS

HEAVY = ("accelerate", "matplotlib", "numpy", "sklearn", "timm", "torch", "torchvision", "transformers")
# The same on every machine: nobody's colours, width or completion.
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("COMP_", "_FROSTLINE"))}


def imported_by(*arguments: str, **environment: str) -> list[str]:
    """Which of the heavy packages the program has imported when it ends.

    That such a check can see torch is tested beside the public names.
    """
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('heavy:', *sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr))\n"
        f"from frostline.cli import main\nsys.argv = ['frostline', *{arguments!r}]\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=PLAIN | environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stderr.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("arguments", ["--help", "--version", "demo", "demo --help", "demo S1 --show"])
def test_what_needs_no_model_does_not_wait_for_torch(arguments: str) -> None:
    assert imported_by(*arguments.split()) == []


def test_no_help_of_a_command_waits_for_torch() -> None:
    code = (
        "import contextlib, io, sys\nfrom frostline.cli.commands import COMMANDS, real_command\n"
        "for name in COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        real_command(name).main(['--help'], prog_name=name)\n"
        f"    print(name, *sorted({set(HEAVY)!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=PLAIN)
    assert done.stdout.split() == list(COMMANDS), "which command brings what stands beside it"


@pytest.mark.parametrize("words", ["frostline ", "frostline demo ", "frostline demo S", "frostline doctor --st"])
def test_a_shell_that_completes_does_not_wait_for_torch(words: str) -> None:
    at = str(len(words.split(" ")) - 1)
    assert imported_by(_FROSTLINE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=at) == []


def test_the_import_adds_little_to_that_of_torch() -> None:
    code = (
        "import json, time, torch\nbegan = time.process_time()\nimport frostline\n"
        "print(json.dumps(time.process_time() - began))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) <= 0.15


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the time of another process is not known here")
@pytest.mark.parametrize("arguments", ["--help", "--version", "demo"])
def test_an_answer_takes_little_of_the_processor(arguments: str) -> None:
    def seconds() -> float:
        command = [sys.executable, "-m", "frostline", *arguments.split()]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=PLAIN)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    # The first may have to compile what was never run before.
    assert min(seconds() for _ in range(3)) <= 0.3

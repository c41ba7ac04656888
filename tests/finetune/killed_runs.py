"""A program for `test_resume`: runs the job in children that kill themselves at a chosen write.

Imports once, then forks for each order on standard input, a line of JSON: so twenty killed runs take seconds. Nothing
is computed before the fork, because the threads of torch would not survive it. The signal is SIGKILL: nothing is
cleaned up, no buffer is flushed, no destructor runs.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any


def die_at(file: str, number: int, when: str) -> None:
    """Wrap what writes a run folder; the rest of the job is as it is."""
    from frostline import durable

    seen = 0

    def wrap(write: Any, half: Any) -> Any:
        def writing(path: Path, content: bytes) -> None:
            nonlocal seen
            seen += file in path.name
            now = seen == number and file in path.name
            if now and when == "half":
                half(path, content[: len(content) // 2])
            if now and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, content)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

        return writing

    def half_of_new(path: Path, content: bytes) -> None:
        path.with_name(f".{path.name}.0a1b2c3d{durable.PARTIAL}").write_bytes(content)

    durable.append_file = wrap(durable.append_file, durable.append_file)
    durable.replace_file = wrap(durable.replace_file, half_of_new)


def obey(order: dict[str, Any]) -> None:
    import torch

    from frostline.finetune import FinetuneConfig, resume, run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    die_at(order["file"], order["number"], order["when"])
    if order["config"] is None:
        resume(order["out"])
    else:
        run(FinetuneConfig.from_json(order["config"]), order["out"])


def main() -> None:
    # What a run imports as it goes on, too: each child would do that again, which takes longer than the run.
    import accelerate  # noqa: F401
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.style  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch._dynamo  # noqa: F401

    import frostline.finetune  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                obey(json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    main()

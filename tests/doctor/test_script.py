"""Scripts as users have them: the mistakes of the scenarios, those that misbehave, and the frameworks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frostline.doctor.script import run_script
from frostline.errors import ScriptError
from frostline.findings import Severity

SCRIPTS = Path(__file__).parent / "scripts"


def line_of(script: str, text: str) -> int:
    lines = (SCRIPTS / script).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.fixture(autouse=True)
def _quiet_scripts(capfd):
    return capfd


@pytest.mark.parametrize(
    ("script", "code", "line", "paths"),
    [
        ("s1_two_heads.py", "F107", "out1, _ = net(images)", {"trunk.1.running_mean"}),
        ("s2_changes_by_itself.py", "F107", "net(train_x)", {"1.running_mean"}),
        ("s4_classifier_only.py", "F101", "param.require_grad = False", {"features.0.weight"}),
        ("s9_accumulation.py", "O408", "optimizer.step()", set()),
    ],
)
def test_the_scenarios_are_found_with_the_right_cause_first_and_its_line(script, code, line, paths):
    run = run_script(SCRIPTS / script, steps=9)
    first = run.examination[0]
    assert first.code == code
    assert first.line == line_of(script, line)
    assert Path(first.file).name == script
    assert paths <= set(first.paths)
    assert run.seen.missed == [] or script.startswith("s2")


def test_the_second_mistake_of_s4_is_found_too():
    run = run_script(SCRIPTS / "s4_classifier_only.py", steps=9)
    assert {f.code: f.where for f in run.examination.worse_than(Severity.WARNING)}["O412"] == "bottleneck"


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


LOOP = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
done = 0
def step():
    global done
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    done += 1
"""


def test_the_run_stops_after_its_steps_and_torch_is_put_back(tmp_path):
    import torch

    before = torch.nn.Module.__call__, torch.nn.Module.train, list(sys.path), sys.argv
    run = run_script(write(tmp_path, LOOP + "while True:\n    step()\n"), ["--lr", "1"], steps=7)
    assert (run.seen.ended, len(run.seen.steps)) == ("stopped", 7)
    assert (torch.nn.Module.__call__, torch.nn.Module.train, list(sys.path), sys.argv) == before
    assert run.is_complete


def test_it_goes_on_unwatched_where_that_is_asked_for(tmp_path):
    text = (
        LOOP + "for _ in range(9):\n    step()\n__import__('pathlib').Path(__file__ + '.done').write_text(str(done))\n"
    )
    path = write(tmp_path, text)
    run = run_script(path, steps=3, keep_going=True)
    assert Path(f"{path}.done").read_text() == "9"
    assert len(run.seen.steps) == 3


def test_results_are_those_of_python_itself(tmp_path):
    text = LOOP + "for _ in range(5):\n    step()\nprint(model.weight.tolist(), torch.rand(1).item(), __name__)\n"
    path = write(tmp_path, text)
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    watched = subprocess.run(
        [sys.executable, "-m", "frostline", "doctor", "--steps", "0", "--json", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert watched.stderr.splitlines()[-1] == plain.stdout.strip()
    assert json.loads(watched.stdout)["findings"] == []


def test_a_script_that_does_not_exist_is_named_with_its_neighbours(tmp_path):
    write(tmp_path, "")
    with pytest.raises(ScriptError, match=r"there is no script .*trian.py.\n  beside it: train.py"):
        run_script(tmp_path / "trian.py")
    with pytest.raises(ScriptError, match=r"folder without __main__\.py"):
        run_script(tmp_path)
    with pytest.raises(ScriptError, match=r"no module 'nowhere\.train'"):
        run_script("nowhere.train", as_module=True)


def test_a_crash_is_shown_with_its_own_traceback_and_what_was_seen_until_then(tmp_path):
    path = write(tmp_path, LOOP + "step()\nstep()\nraise KeyError('labels')\n")
    run = run_script(path)
    assert run.seen.crash.type == "KeyError"
    assert "raise KeyError('labels')" in run.seen.crash.traceback
    assert "frostline" not in run.seen.crash.traceback.replace(str(tmp_path), "")
    assert len(run.seen.steps) == 2
    assert not run.is_complete


def test_a_syntax_error_is_a_crash_too(tmp_path):
    run = run_script(write(tmp_path, "def broken(:\n"))
    assert run.seen.crash.type == "SyntaxError"


def test_a_script_that_never_steps_is_said_to(tmp_path):
    run = run_script(write(tmp_path, "import torch\nprint(torch.nn.Linear(1, 1)(torch.ones(1, 1)).shape)\n"))
    assert run.seen.missed == ["no optimizer stepped in 1 forward passes: what happens at a step was not seen"]
    run = run_script(write(tmp_path, "print('nothing')\n"))
    assert run.seen.missed == ["no optimizer stepped, and no model ran: what happens at a step was not seen"]
    assert not run.is_complete


@pytest.mark.parametrize(("end", "code"), [("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit('bad')", 1)])
def test_sys_exit_is_the_scripts_own(tmp_path, end, code):
    run = run_script(write(tmp_path, LOOP + f"import sys\nstep()\n{end}\n"))
    assert (run.seen.ended, run.exit_code, len(run.seen.steps)) == ("exited", code, 1)


def test_what_catches_exceptions_is_stopped_all_the_same(tmp_path):
    text = LOOP + "while True:\n    try:\n        step()\n    except Exception:\n        print('caught')\n"
    assert run_script(write(tmp_path, text), steps=4).seen.ended == "stopped"


def test_what_catches_everything_ends_with_its_process(tmp_path):
    text = LOOP + "while True:\n    try:\n        step()\n    except BaseException:\n        pass\n"
    done = subprocess.run(
        [sys.executable, "-m", "frostline", "doctor", "--steps", "2", write(tmp_path, text)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "caught the request to stop 5 times" in " ".join(done.stdout.split())


def test_two_models_are_told_apart(tmp_path):
    text = """
import torch
a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
first, second = torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.Adam(b.parameters())
for _ in range(4):
    for optimizer, model in ((first, a), (second, b)):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
"""
    run = run_script(write(tmp_path, text))
    assert {m.name for m in run.seen.models} == {"a", "b"}
    assert {o.name: o.steps for o in run.seen.optimizers} == {"first": 4, "second": 4}
    assert run.examination.worse_than(Severity.WARNING) == []


def test_forked_and_spawned_loaders_are_no_part_of_the_loop(tmp_path):
    text = """
import torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, i):
        return torch.nn.Linear(2, 3)(torch.ones(2)).detach()

if __name__ == "__main__":
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for context in ("fork", "spawn"):
        for x in DataLoader(Rows(), batch_size=4, num_workers=2, multiprocessing_context=context):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
"""
    done = subprocess.run(
        [sys.executable, "-m", "frostline", "doctor", "--json", write(tmp_path, text)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = json.loads(done.stdout)
    assert (told["steps"], len(told["models"]), told["missed"], done.returncode) == (6, 1, [], 0)


def test_remedies_are_applied_and_the_same_audit_runs_again():
    run = run_script(SCRIPTS / "s1_two_heads.py", steps=4, apply=True)
    assert [f.code for f in run.earlier.worse_than(Severity.WARNING)] == ["F107"]
    assert run.applied == ["F107: a hold on 1 normalization layer"]
    assert run.examination.worse_than(Severity.WARNING) == []
    assert [f.code for f in run.earlier.compare(run.examination).gone] == ["F107"]


def test_the_contract_can_be_declared(tmp_path):
    from frostline.audit import Contract

    run = run_script(write(tmp_path, LOOP + "for _ in range(3):\n    step()\n"), contract=Contract(frozen=("bias",)))
    worst = run.examination[0]
    assert worst.severity is Severity.ERROR
    assert "bias" in worst.paths
    assert not worst.inferred


@pytest.mark.slow
def test_a_hundred_thousand_tensors(tmp_path):
    text = """
import torch
from torch import nn
class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(1) for _ in range(99_000)])
        self.layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(500)])
    def forward(self, x):
        return sum(layer.weight.sum() for layer in self.layers[:50]) * x
model = Sum()
for p in model.weights:
    p.requires_grad = False
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(1)).sum().backward()
    optimizer.step()
"""
    run = run_script(write(tmp_path, text))
    assert len(run.seen.models[0].tensors) == 100_000
    assert [f.code for f in run.examination.worse_than(Severity.WARNING)] == []


# -- frameworks -------------------------------------------------------------------------------------------------------

LIGHTNING = """
import logging, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
from frostline.compat import import_torchvision
import_torchvision()
import torch
from torch import nn
import lightning.pytorch as pl

class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 2)
        for p in self.trunk.parameters():
            p.requires_grad = False
        EVAL
    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.head(self.trunk(batch[0])), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.1)

data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Lit(), torch.utils.data.DataLoader(data, batch_size=8))
"""
TRAINER = """
import warnings
warnings.simplefilter("ignore")
from frostline.compat import import_torchvision
import_torchvision()
import torch, tempfile
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

torch.manual_seed(0)
sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
model = BertForSequenceClassification(BertConfig(vocab_size=40, **sizes))
FREEZE
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, i):
        ids = torch.arange(8) + i % 4
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 2}
args = TrainingArguments(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=4, max_steps=12, report_to=[],
                         save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no")
Trainer(model=model, args=args, train_dataset=Data()).train()
"""
ACCELERATE = """
import torch
from torch import nn
from accelerate import Accelerator

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
FREEZE
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
loader = torch.utils.data.DataLoader(data, batch_size=8)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
for epoch in range(3):
    model.train()
    KEEP
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
"""
FREEZE_TWO = "for p in [*model[0].parameters(), *model[1].parameters()]:\n    p.requires_grad = False"


def doctored(path: Path, *options: str, launcher: tuple[str, ...] = (), steps: int = 8) -> tuple[dict, int, str]:
    command = [*(launcher or (sys.executable,)), "-m", "frostline", "doctor", "--json", "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *options, str(path)], capture_output=True, text=True, timeout=500, check=False, env=environment
    )
    assert done.stdout.startswith("{"), done.stderr[-3000:]
    return json.loads(done.stdout), done.returncode, done.stderr


def bad(told: dict) -> list[str]:
    return [row["code"] for row in told["findings"] if row["severity"] != "info"]


@pytest.mark.slow
def test_lightning_is_watched_unmodified(tmp_path):
    told, code, _ = doctored(write(tmp_path, LIGHTNING.replace("EVAL", "pass")))
    assert (bad(told)[:1], code, told["steps"], told["ended"]) == (["F107"], 1, 8, "stopped")
    held = LIGHTNING.replace("EVAL", 'import frostline; frostline.freeze(self, "trunk")')
    told, code, _ = doctored(write(tmp_path, held))
    assert (bad(told), code, told["missed"]) == ([], 0, [])


@pytest.mark.slow
def test_the_trainer_of_transformers_is_watched_unmodified(tmp_path):
    told, code, _ = doctored(write(tmp_path, TRAINER.replace("FREEZE", "")))
    assert (bad(told), code, told["steps"], told["missed"]) == ([], 0, 8, [])
    typo = "for p in model.bert.parameters():\n    p.require_grad = False"
    told, code, _ = doctored(write(tmp_path, TRAINER.replace("FREEZE", typo)))
    assert (bad(told)[:1], code) == (["F101"], 1)


@pytest.mark.slow
def test_accelerate_is_watched_unmodified(tmp_path):
    right = ACCELERATE.replace("FREEZE", "").replace("KEEP", "pass")
    told, code, _ = doctored(write(tmp_path, right))
    assert (bad(told), code, told["missed"]) == ([], 0, [])
    told, code, _ = doctored(write(tmp_path, ACCELERATE.replace("FREEZE", FREEZE_TWO).replace("KEEP", "pass")))
    assert (bad(told)[:1], code) == (["F107"], 1)


DDP = """
import os, torch, torch.distributed as dist
from torch import nn
dist.init_process_group("gloo")
torch.manual_seed(SEED)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
FREEZE
WRAP
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
torch.manual_seed(7 + dist.get_rank())
for _ in range(12):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()
    optimizer.step()
dist.barrier()
os._exit(0)
"""
WRAPPED = "model = nn.parallel.DistributedDataParallel(model)"
TWO = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")


@pytest.mark.slow
def test_two_processes_of_torchrun_are_watched_and_compared(tmp_path):
    free = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    right = DDP.replace("SEED", "0").replace("FREEZE", "").replace("WRAP", WRAPPED)
    told, _, errors = doctored(write(tmp_path, right), launcher=(*TWO, *free))
    assert (bad(told), told["missed"], told["steps"]) == ([], [], 8), errors[-2000:]
    apart = DDP.replace("SEED", "dist.get_rank()").replace("FREEZE", "").replace("WRAP", "")
    told, _, errors = doctored(write(tmp_path, apart), launcher=(*TWO, *free))
    assert "D807" in bad(told), errors[-2000:]

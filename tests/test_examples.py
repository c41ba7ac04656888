"""Every example runs, is short, and shows what it says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
# What compares a page with what was printed; it lies beside the site's other parts, which are no package.
SPEC = importlib.util.spec_from_file_location("docs_snippets", ROOT / "docs" / "site" / "snippets.py")
assert SPEC is not None
assert SPEC.loader is not None
snippets = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = snippets
SPEC.loader.exec_module(snippets)

pytestmark = pytest.mark.slow


def run_example(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    if re.match(r"s\d_", name):
        compare_with_page(ROOT / "docs" / "scenarios" / f"{name[:2]}.md", done.stdout)
    return done.stdout


def compare_with_page(page: Path, printed: str) -> None:
    """What a scenario's page quotes is what its example prints: words and counts exactly, other figures nearly."""
    quoted = next(block for block in snippets.blocks(page) if block.language == "text")
    wrong = snippets.unlike(quoted.text, printed)
    assert not wrong, f"docs/{quoted.page}: {wrong!r} is not what is printed:\n{printed}"


def test_every_example_is_tested_and_short() -> None:
    tested = {
        "s1_two_heads.py",
        "s2_frozen_net.py",
        "s3_which_statistics.py",
        "s4_three_ways.py",
        "s5_part_of_a_checkpoint.py",
        "s6_few_shot.py",
        "s7_eval_worse.py",
        "s8_two_views.py",
        "s9_accumulation.py",
        "lightning_frozen_trunk.py",
        "transformers_frozen_trunk.py",
        "accelerate_frozen_trunk.py",
        "timm_frozen_trunk.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path.name


def test_s1_naive_loses_accuracy_and_frozen_stays_to_the_bit() -> None:
    mistake, frozen = run_example("s1_two_heads.py").split("The same loop with fl.freeze")
    before, after = map(float, re.findall(r"accuracy ([\d.]+)% before, ([\d.]+)% after", mistake)[0])
    assert after < before
    assert "largest change among frozen named_parameters(): 0.0" in mistake
    assert mistake.count("moved: trunk.") == 6
    before, after = re.findall(r"accuracy ([\d.]+)% before, ([\d.]+)% after", frozen)[0]
    assert before == after
    assert "logits equal to the bit: True" in frozen
    assert "nothing moved" in frozen


def test_s2_outputs_differ_then_are_equal_to_the_bit() -> None:
    out = run_example("s2_frozen_net.py")
    assert re.findall(r"outputs equal: (\w+)", out) == ["False", "True"]
    assert "F107" in out
    assert "nothing moved" in out


def test_s4_the_mistakes_are_named_and_the_scheduler_scales_every_group() -> None:
    mistakes, *ways = re.split(r"\n(?=[abc]: )", run_example("s4_three_ways.py"))
    assert "trainable after the typo: 10 of 10 tensors" in mistakes
    assert re.search(r"trunk\.1\.0\.weight +missing", mistakes)
    rates = [re.findall(r"trunk ([\d.]+), head ([\d.]+)", way) for way in ways]
    assert rates == [[("0.1", "0.1"), ("0.05", "0.05")]] * 2 + [[("0.01", "0.1"), ("0.005", "0.05")]]
    assert "nothing moved" in ways[0]
    assert all(float(re.findall(r"accuracy ([\d.]+)%", way)[0]) > 60 for way in ways)


def test_s5_nothing_is_loaded_without_a_word_then_all_of_the_part_is_and_is_proven() -> None:
    out = run_example("s5_part_of_a_checkpoint.py")
    assert "missing: 14 entries, and no error" in out
    assert "fix: if that is meant: drop=['projector', 'queue']" in out
    assert "pretrained.pth -> Sequential: 14/14 tensors, 2,610/2,610 elements (100 %), 2/2 BatchNorm with" in out
    assert "equal to the bit: True" in out
    loaded, random = map(float, re.findall(r"frozen: ([\d.]+)%", out))
    assert loaded > random + 30


def test_s6_the_blow_up_is_stopped_and_explained_and_the_right_policies_work() -> None:
    never, rest = run_example("s6_few_shot.py").split("The second mistake:")
    honest, guarded = rest.split("The same, guarded:")
    assert "accuracy 20.0%" in never
    assert "nan" not in never
    assert "statistics that were never updated (mean 0, variance 1)" in never
    assert "loss nan" in honest
    assert re.search(r"adapting blew up in inner step \d of 7, and was stopped", guarded)
    assert "nan" not in guarded
    assert "statistics stay fixed while the weights in front of them move" in guarded
    assert re.search(r"inner_lr=0\.0\d", guarded)
    assert "MAML: nothing leaks between tasks" in guarded
    rows = {name: float(share) for name, share in re.findall(r"^  (\S+) +\w+ductive +([\d.]+)%", guarded, re.M)}
    assert min(rows["batch"], rows["support"]) > 85
    assert rows["frozen"] < 45


def test_s7_names_the_cause_and_the_repair_brings_the_accuracy_back() -> None:
    healthy, short = run_example("s7_eval_worse.py").split("momentum 0.9:")
    assert "healthy: " in healthy
    assert "apply" not in healthy
    assert "memory-too-short: " in short
    assert "recalibrate on the training data" in short
    assert ", apply" in short
    figures = [float(figure) for figure in re.findall(r"([\d.]+)%", short)]
    assert figures[-1] > figures[0]


def test_s8_statistics_for_each_view_repair_what_pooled_ones_hardly_do() -> None:
    out = run_example("s8_two_views.py")
    shared, pooled, split = (list(map(float, re.findall(r"([\d.]+) %", line))) for line in out.splitlines()[1:])
    assert min(shared) > 20
    assert min(pooled) > 10
    assert max(split) < 5


def test_s3_every_layer_is_read_right_in_every_row() -> None:
    out = run_example("s3_which_statistics.py")
    assert "rows times layers read wrongly: 0 of 42" in out
    assert "frostline policy" in out
    assert "running mean: 1.00 before, 1.31 after" in out


def test_s9_both_remedies_bring_the_statistics_nearer_to_the_population() -> None:
    out = run_example("s9_accumulation.py")
    assert re.search(r"index % k == 0 .*: wrong", out)
    lines = re.findall(r"^  (.+?) mean off by ([\d.]+) sd, spread by ([\d.]+)", out, re.MULTILINE)
    off = {name.strip(): (float(mean), float(spread)) for name, mean, spread in lines}
    assert off["rescaled momentum"][0] < off["naive"][0] / 2
    assert off["step_commit"][0] < off["naive"][0] / 2
    assert off["step_commit"][1] < off["rescaled momentum"][1] < off["naive"][1]


def test_lightning_the_finetuning_callback_moves_statistics_and_freeze_does_not() -> None:
    theirs, ours, schedule = run_example("lightning_frozen_trunk.py").split("\nFreeze")
    assert "moved in the backbone: 6 tensors" in theirs
    assert "F107" in theirs
    accuracies = [float(re.findall(r"is right in ([\d.]+)%", part)[0]) for part in (theirs, ours)]
    assert accuracies[0] < accuracies[1]
    assert "moved in the backbone: 0 tensors" in ours
    assert "40 of 40 held state entries are equal to the bit" in ours
    assert "17 of 17 held state entries are equal to the bit" in schedule
    assert "unfrozen after epoch 2" in schedule


def test_transformers_the_trainer_undoes_eval_and_not_a_hold() -> None:
    mistake, held, schedule = run_example("transformers_frozen_trunk.py").split("\nWith ")
    assert "running variances of 6 layers moved" in mistake
    assert "F107 6 normalization layers" in mistake
    assert "118 of 118 held state entries are equal to the bit" in held
    assert "the doctor finds 0" in held
    assert "60 of 60 held state entries are equal to the bit" in schedule
    assert "unfrozen after epoch 2" in schedule


def test_accelerate_its_checkpoints_lose_the_schedule_and_carry_it_when_registered() -> None:
    mistake, registered = run_example("accelerate_frozen_trunk.py").split("\nWith ")
    assert "the last block is frozen again" in mistake
    assert "loaded without a word" in mistake
    assert "after load_state in a new start, the last block trains" in registered
    assert "1 of 7 held entries are not what the checkpoint's run held: first.1.running_mean" in registered


def test_timm_the_first_classifier_fits_the_trunk_that_was_held() -> None:
    out = run_example("timm_frozen_trunk.py")
    before, after = re.findall(r"digits 0-4.*?: ?([\d.]+)%|digits 0-4, trained from nothing: ([\d.]+)%", out)[:2]
    assert "".join(before) == "".join(after)
    assert out.count("nothing moved") == 3
    assert "accuracy the same: True" in out
    assert out.rstrip().endswith("back: FrozenBatchNorm2d")

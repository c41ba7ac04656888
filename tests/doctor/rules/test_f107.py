"""F107: statistics of a frozen part that move."""

from planted_loops import f107, marked_line

from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F107 error: 2 normalization layers of a frozen part moved their statistics
  seen: 0.4.running_var: moved by up to 0.331 in 4 steps
        written by aten.native_batch_norm at benchmarks/planted_loops/f107.py:{line}  logits = model(x)  # <- F107
        training=True in 2 layers (set by model.train() at benchmarks/planted_loops/f107.py:{mode}); \
requires_grad=False does not stop statistics
        8 frozen parameters did not move
  at:   benchmarks/planted_loops/f107.py:{line}  logits = model(x)  # <- F107
  fix:  frostline.freeze(model, "0")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f107.failing())
    assert [f.code for f in found] == ["F107"]
    line = marked_line(f107.failing, "F107")
    assert str(found[0]) == TEXT.format(line=line, mode=line - 4)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {
        f"0.{layer}.{name}" for layer in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f107.twin())
    assert list(found) == []
    assert "2 normalization layers of frozen parts kept their statistics" in found.sound


def test_the_remedy_in_memory_holds():
    seen = f107.failing()
    examine(seen).apply()
    model = seen.models[0].live
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()(__import__("torch").randn(8, 4))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())

"""Holds at the boundary of activation checkpointing: what is recomputed, what gets gradients, what moves twice."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.optim import Stage, Step, Unfreeze, Unfreezing


@pytest.fixture
def make_checkpointed(make_net):
    """The net with some parts under checkpointing."""

    def make(parts, reentrant):
        net = make_net()

        def forward(x):
            for name in ("stem", "body"):
                part = getattr(net, name)
                x = checkpoint(part, x, use_reentrant=reentrant) if name in parts else part(x)
            return net.head(x)

        net.forward = forward
        return net

    return make


def backward(net, x, seed=0):
    net.train()
    torch.manual_seed(seed)
    net.zero_grad()
    net(x).square().mean().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def assert_same_gradients(mine, theirs):
    for name in theirs:
        assert (mine[name] is None) == (theirs[name] is None), name
        assert mine[name] is None or torch.equal(mine[name], theirs[name]), name


class TestGradients:
    @pytest.mark.parametrize("held", ["stem", "body"])
    @pytest.mark.parametrize("parts", [("stem",), ("body",), ("stem", "body")])
    def test_non_reentrant_gives_the_gradients_of_the_run_without(self, make_checkpointed, batches, held, parts):
        plain, net = make_checkpointed((), False), make_checkpointed(parts, False)
        holds = [fl.freeze(each, held) for each in (plain, net)]
        expected = backward(plain, batches[0])
        assert_same_gradients(backward(net, batches[0]), expected)
        assert {name.split(".")[0] for name, gradient in expected.items() if gradient is None} == {held}
        for hold in holds:
            hold.verify()

    def test_reentrant_behind_a_held_part_gets_none_silently_but_for_a_warning(self, make_checkpointed, batches):
        """The failing twin (row F17 of the table of facts, transformers#21381)."""
        net = make_checkpointed(("body",), True)
        hold = fl.freeze(net, "stem")
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
            gradients = backward(net, batches[0])
        assert [name for name, gradient in gradients.items() if gradient is not None] == ["head.weight", "head.bias"]
        hold.verify()

    def test_reentrant_with_an_input_that_requires_a_gradient(self, make_checkpointed, batches):
        """What transformers does by ``enable_input_require_grads``: the held part still gets none itself."""
        plain, net = make_checkpointed((), True), make_checkpointed(("body",), True)
        holds = [fl.freeze(each, "stem") for each in (plain, net)]
        net.stem.register_forward_hook(lambda module, args, out: out.requires_grad_())
        assert_same_gradients(backward(net, batches[0]), backward(plain, batches[0]))
        for hold in holds:
            hold.verify()

    def test_a_held_part_in_the_middle_passes_gradients_on_in_both_ways(self, make_checkpointed, batches):
        expected = None
        for parts, reentrant in [((), False), (("body",), False), (("body",), True)]:
            net = make_checkpointed(parts, reentrant)
            hold = fl.freeze(net, "body")
            gradients = backward(net, batches[0])
            expected = expected or gradients
            assert_same_gradients(gradients, expected)
            assert gradients["stem.0.weight"].abs().sum() > 0
            hold.verify()


class TestStatistics:
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_checkpointed_batch_norm_updates_twice_a_step_and_a_held_one_not_at_all(
        self, make_checkpointed, batches, bytes_of, moved, reentrant
    ):
        naive, net = make_checkpointed(("body",), reentrant), make_checkpointed(("body",), reentrant)
        naive.body.requires_grad_(False)
        hold = fl.freeze(net, "body")
        before = bytes_of(net.body)
        for each in (naive, net):
            backward(each, batches[0])
        assert naive.body[1].num_batches_tracked == 3 + 2
        assert net.stem[1].num_batches_tracked == 3 + 1
        assert moved(before, bytes_of(net.body)) == set()
        assert moved(before, bytes_of(naive.body)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        hold.verify()


class TestTraining:
    @pytest.mark.parametrize("parts", [("body",), ("stem", "body")])
    def test_unfreezing_under_checkpointing_trains_as_without(self, make_checkpointed, batches, bytes_of, parts):
        """But for the statistics that are updated twice, which train mode does not read."""

        def run(parts):
            net = make_checkpointed(parts, False)
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
            unfreezing = Unfreezing(Unfreeze((Stage(("body",), Step(2)), Stage(("stem",), Step(4)))), net, optimizer)
            states = []
            for number, x in enumerate(batches):
                backward(net, x, seed=number)
                optimizer.step()
                if unfreezing.held:
                    unfreezing.hold.verify()
                states.append({n: v for n, v in bytes_of(net).items() if "running" not in n and "num_batches" not in n})
            return states

        # While the body is held it stays in eval mode, and afterwards its batch decides: the values are the same.
        assert run(parts) == run(())

    def test_under_compile_in_one_graph(self, make_net, batches):
        class Compiled(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, x):
                return self.net.head(checkpoint(self.net.body, self.net.stem(x), use_reentrant=False))

        plain, model = Compiled(make_net(0.0)), Compiled(make_net(0.0))
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        holds = [fl.freeze(each, "net.stem") for each in (plain, compiled)]
        assert_same_gradients(backward(model, batches[0]), backward(plain, batches[0]))
        for hold in holds:
            hold.verify()


@pytest.mark.slow
def test_the_doctor_names_the_silent_case(tmp_path):
    """Rule F118, with a hold in place of a flag."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import torch
            from torch import nn
            from torch.utils.checkpoint import checkpoint
            import frostline as fl

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.stem, self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

                def forward(self, x):
                    return self.head(checkpoint(self.body, self.stem(x), use_reentrant=True))

            torch.manual_seed(0)
            net = Net()
            hold = fl.freeze(net, "stem")
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(4):
                net.train()
                optimizer.zero_grad()
                net(torch.randn(4, 6)).square().mean().backward()
                optimizer.step()
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "frostline", "doctor", str(script)],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert "F118" in done.stdout, done.stdout + done.stderr
    assert "body" in done.stdout
    assert "use_reentrant=False" in done.stdout

"""T704: the inner loop writes into the meta-parameters themselves."""

from __future__ import annotations

import pytest

CODE = "T704"
MAML = """
import copy, torch
def meta_train(model, tasks, inner_lr, criterion):
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(10):
        for support_x, support_y, query_x, query_y in tasks:
            {before}
            for _ in range(5):
                {inner}
            optimizer.zero_grad()
            criterion(model(query_x), query_y).backward()
            optimizer.step()
            {after}
"""
GRADIENTS = "grads = torch.autograd.grad(criterion(model(support_x), support_y), list(model.parameters()))"
WRITES = f"""{GRADIENTS}
                for p, g in zip(model.parameters(), grads):
                    {{write}}"""
OPTIMIZER = """criterion({net}(support_x), support_y).backward()
                inner_opt.step()"""
TRUE = {
    "data": MAML.format(before="", after="", inner=WRITES.format(write="p.data -= inner_lr * g  # <- T704")),
    "sub_": MAML.format(before="", after="", inner=WRITES.format(write="p.data.sub_(inner_lr * g)  # <- T704")),
    "add_ with alpha": MAML.format(
        before="", after="", inner=WRITES.format(write="p.data.add_(g, alpha=-inner_lr)  # <- T704")
    ),
    "an inner optimizer": MAML.format(
        before="inner_opt = torch.optim.SGD(model.parameters(), lr=inner_lr)",
        after="",
        inner=OPTIMIZER.format(net="model").replace("inner_opt.step()", "inner_opt.step()  # <- T704"),
    ),
    "a dictionary": """
        import torch
        from torch.func import functional_call
        def adapt(model, support_x, support_y, query_x, inner_lr):
            fast_weights = dict(model.named_parameters())
            grads = torch.autograd.grad(loss(functional_call(model, fast_weights, (support_x,)), support_y), x)
            with torch.no_grad():
                for name, g in zip(fast_weights, grads):
                    fast_weights[name] -= inner_lr * g  # <- T704
        """,
    "a dictionary's data": """
        import torch
        def inner_loop(self, support, query, task_lr):
            adapted = {n: p for n, p in self.net.named_parameters()}
            grads = torch.autograd.grad(self.loss(support), list(adapted.values()))
            for (n, p), grad in zip(adapted.items(), grads):
                adapted[n].data.sub_(task_lr * grad)  # <- T704
        """,
    "a helper": """
        import torch
        def inner_loop(net, x, y, inner_lr):
            inner_opt = torch.optim.SGD(net.parameters(), lr=inner_lr)
            for _ in range(5):
                criterion(net(x), y).backward()
                inner_opt.step()  # <- T704
        class MAML:
            def __init__(self, net):
                self.net = net
                self.meta_optimizer = torch.optim.Adam(net.parameters())
            def meta_step(self, tasks):
                for support, query in tasks:
                    inner_loop(self.net, *support, 0.1)
                    criterion(self.net(query)).backward()
                    self.meta_optimizer.step()
        """,
}
SILENT = {
    "new tensors": """
        import torch
        def adapt(model, support_x, support_y, query_x, inner_lr):
            fast_weights = dict(model.named_parameters())
            grads = torch.autograd.grad(loss(support_x), list(fast_weights.values()), create_graph=True)
            fast_weights = {n: p - inner_lr * g for (n, p), g in zip(fast_weights.items(), grads)}
        """,
    "clones": """
        import torch
        def adapt(model, support_x, support_y, query_x, inner_lr):
            fast_weights = {n: p.clone() for n, p in model.named_parameters()}
            grads = torch.autograd.grad(loss(support_x), list(fast_weights.values()))
            for name, g in zip(fast_weights, grads):
                fast_weights[name] -= inner_lr * g
        """,
    "a deep copy": MAML.format(
        before="learner = copy.deepcopy(model)\n            inner_opt = torch.optim.SGD(learner.parameters(), lr=0.1)",
        after="",
        inner=OPTIMIZER.format(net="learner"),
    ),
    "a deep copy's dictionary": """
        import copy, torch
        def adapt(model, support, query, inner_lr):
            learner = copy.deepcopy(model)
            fast_weights = dict(learner.named_parameters())
            grads = torch.autograd.grad(loss(learner(support)), list(fast_weights.values()))
            for name, g in zip(fast_weights, grads):
                fast_weights[name].data -= inner_lr * g
        """,
    "put back": MAML.format(
        before="old = copy.deepcopy(model.state_dict())",
        after="model.load_state_dict(old)",
        inner=WRITES.format(write="p.data -= inner_lr * g"),
    ),
    "clipped": MAML.format(before="", after="", inner=WRITES.format(write="p.data.clamp_(-0.01, 0.01)")),
    "no meta-learning": """
        import torch
        def train(model, loader, lr):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for x, y in loader:
                for p, g in zip(model.parameters(), gradients(model, x)):
                    p.data -= lr * g
                optimizer.step()
        """,
    "higher": """
        import higher, torch
        def train(net, tasks):
            meta_opt = torch.optim.Adam(net.parameters())
            for x, y in tasks:
                inner_opt = torch.optim.SGD(net.parameters(), lr=0.1)
                with higher.innerloop_ctx(net, inner_opt) as (fnet, diffopt):
                    for _ in range(5):
                        diffopt.step(loss(fnet(x), y))
                    loss(fnet(x), y).backward()
                meta_opt.step()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(TRUE["an inner optimizer"], CODE)
    assert found.finding.message == (
        "the inner loop moves model, which the optimizer of line 13 meta-learns: tasks begin elsewhere"
    )
    assert found.finding.evidence == (
        "the inner optimizer of line 7 has its parameters themselves\n"
        "line 13 steps the parameters of model for all tasks\n"
        "the file does meta-learning: meta_train and inner_lr stand here"
    )
    assert found.finding.inferred

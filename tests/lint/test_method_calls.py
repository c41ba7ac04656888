"""What methods do to modules, optimizers and what belongs to them."""

from __future__ import annotations

import pytest

HEAD = """
import torch
from torch import nn, optim
net = nn.Linear(2, 2)
opt = optim.SGD(net.parameters())
sched = optim.lr_scheduler.StepLR(opt, 1)
scaler = torch.amp.GradScaler()
average = optim.swa_utils.AveragedModel(net)
"""
FIELDS = ("value", "how", "set_to_none", "strict", "assign", "used", "of", "scaled", "scaler", "direct", "filtered")


def done(view, text: str) -> list[str]:
    """``what path`` and what is said of it, of what comes behind the head."""
    (flow,) = [flow for flow in view(HEAD + text).flows if flow.name == "<module>"]
    first = HEAD.count("\n")
    return [
        " ".join([event.what, event.path, *(f"{k}={event.data[k]}" for k in FIELDS if event.data.get(k) is not None)])
        for event in flow.events
        if event.line > first
    ]


METHODS = {
    "net.train()": ["mode net value=True how=method"],
    "net.train(False)": ["mode net value=False how=method"],
    "net.train(mode=True)": ["mode net value=True how=method"],
    "net.train(flag)": ["mode net value=Value(kind='argument'"],
    "net.eval()": ["mode net value=False how=method"],
    "net.fc.eval()": ["mode net.fc value=False how=method"],
    "opt.train()": ["optimizer_mode opt value=True"],
    "trainer.train(data)": [],
    "trainer.fit(net)": ["unknown "],
    "net.requires_grad_(False)": ["flag net value=False how=module_method filtered=False"],
    "net.requires_grad_(requires_grad=False)": ["flag net value=False how=module_method filtered=False"],
    "net.requires_grad_()": ["flag net value=True how=module_method filtered=False"],
    "net.weight.requires_grad_(0)": ["flag net.weight value=False how=method filtered=False"],
    "net.weight.grad.requires_grad_(False)": [],
    "opt.zero_grad()": ["zero_grad opt of=optimizer"],
    "opt.zero_grad(set_to_none=False)": ["zero_grad opt set_to_none=False of=optimizer"],
    "net.zero_grad(True)": ["zero_grad net set_to_none=True of=module"],
    "opt.step()": ["step opt"],
    "sched.step()": ["scheduler_step sched"],
    "env.step(action)": [],
    "scaler.step(opt)": ["scaler_step opt scaler=scaler"],
    "scaler.unscale_(opt)": ["unscale opt"],
    "scaler.update()": ["scaler_update scaler"],
    "metrics.update(x)": [],
    "scaler.scale(loss).backward()": ["backward scaler scaled=True"],
    "net(x).backward()": ["forward net", "backward  scaled=False"],
    "loss.backward()": ["backward loss scaled=False"],
    "opt.add_param_group({'params': net.parameters()})": ["add_group opt"],
    "opt.param_groups.append({'params': net.parameters()})": ["add_group opt"],
    "net.load_state_dict(x)": ["load net used=False of=module"],
    "r = net.load_state_dict(x, strict=False, assign=True)": ["load net strict=False assign=True used=True of=module"],
    "net.load_state_dict(x, False)": ["load net strict=False used=False of=module"],
    "opt.load_state_dict(x)": ["load opt used=False of=optimizer"],
    "net.state_dict()": ["state_dict net of=module"],
    "net.cuda()": ["move net how=cuda"],
    "net.eval().half()": ["mode net value=False how=method", "move net how=half"],
    "net.forward(x)": ["forward net direct=True"],
    "net.apply(f)": ["unknown "],
    "net.apply(lambda m: m)": [],
    "average.update_parameters(net)": ["average average"],
    "net.weight.data.copy_(x)": ["write net.weight how=copy_"],
    "net.weight.zero_()": ["write net.weight how=zero_"],
    "net.weight.detach().zero_()": [],
    "net.weight.data[0] = 1": ["write net.weight how=assign"],
    "net.weight += 1": ["write net.weight how=assign"],
    "net.register_parameter('w', x)": ["renew net.w how=register"],
    "net.register_parameter('w', None)": [],
    "net.resize_token_embeddings(7)": ["renew net how=resize"],
    "accuracy_score(x)": [],
    "x.topk(1)": ["metric topk"],
}


@pytest.mark.parametrize("text", METHODS)
def test_what_a_method_does(view, text):
    found = done(view, text)
    assert len(found) == len(METHODS[text]), found
    for one, wanted in zip(found, METHODS[text], strict=True):
        assert one.strip() == wanted.strip() or (wanted.endswith("'") and one.startswith(wanted)), found


def test_apply_calls_the_function_for_every_part(view):
    assert done(view, "def f(m): m.eval()\nnet.apply(f)\n") == ["mode net.* value=False how=method"]


def test_an_accelerator_wraps_what_it_prepares(view):
    text = "a = Accelerator()\nm, o = a.prepare(net, opt)\nm(x)\no.step()\na.backward(loss)\n"
    found = done(view, "from accelerate import Accelerator\n" + text)
    assert [each.split(" ")[:2] for each in found if not each.startswith("new")] == [
        *(["wrap", "net"], ["wrap", "opt"], ["forward", "net"], ["step", "opt"], ["backward", "a"])
    ]


def test_the_sources_of_a_new_group(view):
    (flow,) = view(HEAD + "opt.add_param_group({'params': net.fc.parameters()})").flows
    assert [source.path for source in flow.events[-1].get("sources")] == ["net.fc"]


def test_lists_that_are_filled_one_by_one(view):
    text = """
ps = []
for p in net.parameters():
    if p.requires_grad: ps.append(p)
ps.extend(head.parameters())
o = optim.SGD(ps)
"""
    (flow,) = view(HEAD + "head = nn.Linear(1, 1)" + text).flows
    made = flow.of("optimizer")[-1]
    assert [(source.path, source.filtered) for source in made.get("sources")] == [("net", True), ("head", False)]

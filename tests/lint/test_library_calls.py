"""What functions and classes of libraries make and do."""

from __future__ import annotations

import pytest

HEAD = """
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import optim
import copy
from torch.nn.parallel import DistributedDataParallel as DDP
net = nn.Linear(2, 2)
opt = optim.SGD(net.parameters())
"""
FIELDS = ("how", "of", "cls", "options", "name", "paths")


def done(view, text: str) -> list[str]:
    (flow,) = [flow for flow in view(HEAD + text).flows if flow.name == "<module>"]
    first = HEAD.count("\n")
    return [
        " ".join(filter(None, [event.what, event.path, *(f"{k}={event.data[k]}" for k in FIELDS if event.data.get(k))]))
        for event in flow.events
        if event.line > first
    ]


CALLS = {
    "o = optim.Adam(net.parameters(), lr=1e-3, betas=b)": ["optimizer o cls=torch.optim.Adam options={'lr': 0.001}"],
    "o = getattr(optim, name)(net.parameters())": ["optimizer o cls=torch.optim.Optimizer"],
    "o = timm.optim.AdamP(net.parameters())": ["optimizer o cls=timm.optim.AdamP"],
    "s = optim.lr_scheduler.StepLR(opt, 1)": ["scheduler s of=opt cls=torch.optim.lr_scheduler.StepLR"],
    "s = optim.lr_scheduler.StepLR(optimizer=opt)": ["scheduler s of=opt cls=torch.optim.lr_scheduler.StepLR"],
    "m = nn.ReLU()": ["new m"],
    "m = torchvision.models.resnet18()": ["new m"],
    "m.fc = nn.ReLU()": ["new m.fc"],
    "m['fc'] = nn.ReLU()": [],
    "net[0] = nn.ReLU()": ["new net[0]"],
    "setattr(net, 'fc', nn.ReLU())": ["new net.fc"],
    "w = nn.Parameter(x)": ["new_parameter w"],
    "net.w = nn.Parameter(x)": ["new_parameter net.w", "renew net.w how=parameter"],
    "d = DDP(net, find_unused_parameters=True)": [
        *("wrap d how=ddp of=net options={'find_unused_parameters': True}", "new d")
    ],
    "d = nn.DataParallel(module=net)": ["wrap d how=dp of=net", "new d"],
    "c = torch.compile(net)": ["wrap c how=compile of=net", "new c"],
    "c = torch.compile(function)": [],
    "torch.distributed.fsdp.fully_shard(net)": ["wrap net how=fsdp of=net"],
    "a = optim.swa_utils.AveragedModel(net)": ["wrap a how=averaged of=net"],
    "optim.swa_utils.update_bn(loader, net)": ["update_bn net"],
    "nn.utils.clip_grad_norm_(net.parameters(), 1)": ["clip net"],
    "torch.nn.utils.clip_grad_value_(parameters=net.parameters(), clip_value=1)": ["clip net"],
    "torch.save(net.state_dict(), 'x')": ["state_dict net of=module", "save net"],
    "safetensors.torch.save_file(net.state_dict(), 'x')": ["state_dict net of=module", "save net"],
    "nn.init.zeros_(net.weight)": ["init net.weight"],
    "torch.func.functional_call(net, params, x)": ["functional net"],
    "frostline.freeze(net)": ["hold net"],
    "c = copy.deepcopy(net)": ["new c"],
    "other.work(net, opt)": ["unknown name=other.work paths=['net', 'opt']"],
    "F.relu(x)": [],
    "sklearn.metrics.accuracy_score(x, y)": ["metric accuracy_score"],
    "print(net)": [],
}


@pytest.mark.parametrize("text", CALLS)
def test_what_a_call_does(view, text):
    imports = "import timm, torchvision, safetensors, frostline, other, sklearn\n"
    found = [each for each in done(view, imports + text) if not each.startswith("alias")]
    assert found == CALLS[text]


def test_a_class_of_the_file_that_is_an_optimizer_or_module(view):
    text = """
class Mine(optim.Optimizer): pass
class Net(nn.Module):
    def __init__(self, n): super().__init__()
class Other: pass
a = Net(1); b = Other()
"""
    assert done(view, text) == ["new a"]

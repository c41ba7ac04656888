"""What a process trains by itself, so that the result does not depend on how many there are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frostline.finetune.alone import Alone, moving, one_thread, same_on_all


def alone() -> Alone:
    return Alone(SimpleNamespace(device=torch.device("cpu"), is_main_process=False, num_processes=4, process_index=3))


def test_it_is_one_process_of_one():
    accelerator = alone()
    assert (accelerator.num_processes, accelerator.process_index, accelerator.is_main_process) == (1, 0, False)
    value = torch.ones(2)
    assert accelerator.reduce(value) is value
    assert accelerator.gather_for_metrics((value, value)) == (value, value)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def test_it_sees_all_of_the_data_in_order():
    accelerator, model = alone(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.arange(5.0)), batch_size=2)
    again, same, loaded = accelerator.prepare(model, optimizer, loader)
    assert (again, same) == (model, optimizer)
    assert [batch.tolist() for (batch,) in loaded] == [[0, 1], [2, 3], [4]]
    assert [batch.tolist() for (batch,) in moving(loader, torch.device("cpu"))] == [[0, 1], [2, 3], [4]]


def test_backward_is_plain():
    model = nn.Linear(1, 1)
    alone().backward(model(torch.ones(1, 1)).sum())
    assert model.weight.grad is not None


def test_one_thread_and_back_also_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        with one_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_other_processes_a_model_is_what_it_was():
    model = nn.BatchNorm1d(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    same_on_all(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

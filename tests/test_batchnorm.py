"""``reestimated_batch_norm``: plain averages over the batches inside the block, everything as before afterwards."""

import copy

import pytest
import torch
from torch import nn

from adder_zoo import Adder2d, reestimated_batch_norm


@pytest.fixture
def model():
    return nn.Sequential(Adder2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(12))


def test_statistics_are_averages_over_the_batches_and_are_put_back(model):
    batches = [torch.randn(5, 2, 4, 4) for _ in range(3)]
    model(torch.randn(5, 2, 4, 4))
    before = copy.deepcopy(model.state_dict())
    features = [model[0](b).detach() for b in batches]
    model.eval()
    with reestimated_batch_norm(model, [(b, "label") for b in batches]) as same:
        assert same is model
        assert not model.training
        mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
        var = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
        torch.testing.assert_close(model[1].running_mean, mean)
        torch.testing.assert_close(model[1].running_var, var)
        assert model[1].momentum == 0.3
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_averages_over_processes(model):
    calls = []
    with reestimated_batch_norm(model, [torch.randn(5, 2, 4, 4)], lambda t: calls.append(t) or torch.ones_like(t)):
        assert torch.equal(model[1].running_var, torch.ones(3))
        assert torch.equal(model[4].running_mean, torch.ones(12))
    assert len(calls) == 4


def test_puts_back_after_an_error_and_needs_a_batch(model):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no batch"), reestimated_batch_norm(model, []):
        pass
    with pytest.raises(KeyError), reestimated_batch_norm(model, [torch.randn(5, 2, 4, 4)]):
        raise KeyError
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_without_batch_norm_is_left_alone():
    layer = nn.Linear(2, 2)
    with reestimated_batch_norm(layer, []) as same:
        assert same is layer

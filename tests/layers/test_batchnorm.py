"""``reestimated_batch_norm``: plain averages over the batches inside the block, everything as before afterwards."""

import copy

import pytest
import torch
from torch import nn

from adder_zoo import Adder2d, float32_norms, reestimated_batch_norm


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


class Broken:
    """Batches of which the second cannot be read."""

    def __iter__(self):
        yield torch.randn(5, 2, 4, 4)
        raise OSError("no such file")


def state(model):
    modes = {name: module.training for name, module in model.named_modules()}
    momenta = {name: getattr(module, "momentum", 0) for name, module in model.named_modules()}
    return modes, momenta, copy.deepcopy(model.state_dict())


def assert_unchanged(model, before):
    modes, momenta, tensors = state(model)
    assert (modes, momenta) == before[:2]
    assert all(torch.equal(tensors[key], value) for key, value in before[2].items())


def failing(model):
    model[3].forward = lambda x: (_ for _ in ()).throw(FloatingPointError)


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize(
    ("error", "batches", "average", "spoil"),
    [
        (OSError, Broken(), None, None),
        (ValueError, [], None, None),
        (ValueError, [torch.randn(5, 9, 4, 4)], None, None),
        (FloatingPointError, [torch.randn(5, 2, 4, 4)], None, failing),
        (TypeError, [torch.randn(5, 2, 4, 4)], lambda t: None, None),
        (KeyboardInterrupt, [torch.randn(5, 2, 4, 4)], None, None),
    ],
    ids=["loader", "empty", "input", "model", "average", "body"],
)
def test_everything_is_put_back_whatever_raises(model, mode, error, batches, average, spoil):
    model(torch.randn(5, 2, 4, 4))
    model.train(mode != "eval")
    if mode == "mixed":
        model[1].eval()
        model[2].eval()
    before = state(model)
    if spoil:
        spoil(model)
    with pytest.raises(error), reestimated_batch_norm(model, batches, average):
        raise KeyboardInterrupt
    assert_unchanged(model, before)


def test_frozen_layers_stay_frozen(model):
    model = nn.Sequential(*model, nn.BatchNorm1d(12, track_running_stats=False))
    model(torch.randn(5, 2, 4, 4))
    model.train()
    model[1].eval()
    before = state(model)
    batches = [torch.randn(5, 2, 4, 4) for _ in range(2)]
    features = [torch.flatten(model[2](model[1](model[0](b))), 1).detach() for b in batches]
    with reestimated_batch_norm(model, iter(batches)):
        assert torch.equal(model[1].running_mean, before[2]["1.running_mean"])
        assert torch.equal(model[1].running_var, before[2]["1.running_var"])
        torch.testing.assert_close(model[4].running_mean, torch.stack([f.mean(0) for f in features]).mean(0))
        assert {name: module.training for name, module in model.named_modules()} == before[0]
    assert_unchanged(model, before)


def test_a_layer_that_stays_in_eval_mode_keeps_its_statistics(model):
    """Frozen by a ``train`` of its own, as detectors do: a model in eval mode does not show it."""
    model(torch.randn(5, 2, 4, 4))
    model.eval()
    model[1].train = lambda mode=True: model[1]
    before = state(model)
    with reestimated_batch_norm(model, [torch.randn(5, 2, 4, 4)]):
        assert torch.equal(model[1].running_mean, before[2]["1.running_mean"])
        assert not torch.equal(model[4].running_mean, before[2]["4.running_mean"])
    assert_unchanged(model, before)


def test_half_precision_takes_statistics_in_float32(model):
    model = float32_norms(model)
    batches = [torch.randn(5, 2, 4, 4).bfloat16() for _ in range(3)]
    half = copy.deepcopy(model).bfloat16().eval()
    before = state(half)
    features = [half[0](b).double() for b in batches]
    with reestimated_batch_norm(half, batches), torch.no_grad():
        mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
        torch.testing.assert_close(half[1].running_mean.double(), mean, rtol=1e-6, atol=0)
    assert_unchanged(half, before)


def test_a_model_without_batch_norm_is_left_alone():
    layer = nn.Linear(2, 2)
    with reestimated_batch_norm(layer, []) as same:
        assert same is layer


def test_a_compiled_network_is_not_compiled_again_for_it():
    """The plain average makes torch's batch norm ask for a number at each batch, which breaks a graph at each layer."""
    torch._dynamo.reset()
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph

    model = nn.Sequential(Adder2d(3, 4, 3), nn.BatchNorm2d(4), Adder2d(4, 5, 1), nn.BatchNorm2d(5))
    x = torch.randn(2, 3, 8, 8)
    model.compile(backend=count)
    model.train()(x)
    assert len(compiled) == 1
    with reestimated_batch_norm(model, [x, x + 1]):
        assert len(compiled) == 1

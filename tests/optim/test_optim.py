"""``AdderSGD`` against Eq. 12 and 13 written out, and that nothing around the gradient changes the update."""

import copy
import io

import numpy as np
import pytest
import timm
import torch
from optimizer_runs import SUPPORT, batch, loss_of, network
from ranks import run_in_two_processes
from torch import nn

from adder_zoo import Adder2d, AdderSGD


def test_update_is_eq_13_then_weight_decay_momentum_and_rate():
    lr, momentum, decay, eta = 0.1, 0.9, 5e-4, 0.2
    model = network()
    optimizer = AdderSGD(model.parameters(), lr, momentum, weight_decay=decay, nesterov=True, eta=eta)
    adder = {0, 6}  # weights of the adder layers, by position
    want = [p.detach().numpy().astype(np.float64) for p in model.parameters()]
    velocity = [0.0 for _ in want]
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, *batch(seed=step)).backward()
        for i, p in enumerate(model.parameters()):
            g = p.grad.numpy().astype(np.float64)
            assert g.any()
            if i in adder:
                g = eta * np.sqrt(g.size) * g / np.linalg.norm(g)
            g = g + decay * want[i]
            velocity[i] = momentum * velocity[i] + g
            want[i] = want[i] - lr * (g + momentum * velocity[i])
        optimizer.step()
        for p, w in zip(model.parameters(), want, strict=True):
            assert np.abs(p.detach().numpy() - w).max() < 1e-5


def test_step_leaves_the_gradient_alone():
    model = network()
    optimizer = AdderSGD(model.parameters(), 0.1)
    loss_of(model, *batch()).backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


def updated(prepare, steps=2, **options):
    model = network()
    optimizer = AdderSGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True, **options)
    for step in range(steps):
        optimizer.zero_grad()
        prepare(model, optimizer, *batch(seed=step))
    return [p.detach().clone() for p in model.parameters()]


def plain(model, optimizer, x, y):
    loss_of(model, x, y).backward()
    optimizer.step()


def assert_close(got, want):
    for a, b in zip(got, want, strict=True):
        # Gradients agree to float32 rounding, which the network's depth amplifies a little.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_accumulation_gives_the_same_update():
    def accumulated(model, optimizer, x, y):
        for part in range(4):
            (loss_of(model, x[2 * part : 2 * part + 2], y[2 * part : 2 * part + 2]) / 4).backward()
        optimizer.step()

    assert_close(updated(accumulated), updated(plain))


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-10])
def test_loss_scale_gives_the_same_update(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def scaled(model, optimizer, x, y):
        scaler.scale(loss_of(model, x, y)).backward()
        scaler.step(optimizer)
        scaler.update()

    assert_close(updated(scaled), updated(plain))


def test_loss_scale_skips_a_step_with_infinities():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    model = network()
    optimizer = AdderSGD(model.parameters(), 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(loss_of(model, *batch())).backward()
    next(model.parameters()).grad[0, 0, 0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**15


def test_two_processes_give_the_same_update(tmp_path):
    script, out = SUPPORT / "optimizer_runs.py", tmp_path / "weights.pt"
    run_in_two_processes(script, out)
    assert_close(torch.load(out), updated(plain))


@pytest.mark.parametrize(("adder_lr", "factor"), [("none", 1.0), ("increased", 100.0), ("increased", 7.0)])
def test_other_rates(adder_lr, factor):
    model, twin = network(), network()
    optimizer = AdderSGD(model.parameters(), 0.01, adder_lr=adder_lr, factor=factor)
    by_hand = torch.optim.SGD(twin.parameters(), 0.01)
    loss_of(model, *batch()).backward()
    loss_of(twin, *batch()).backward()
    twin[0].weight.grad *= factor
    twin[5].weight.grad *= factor
    optimizer.step()
    by_hand.step()
    assert_close([p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()])


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1.0, 1e25])
def test_only_the_direction_of_a_gradient_counts(magnitude):
    layer = Adder2d(2, 3, 3, bias=False)
    before = layer.weight.detach().clone()
    direction = torch.randn_like(before)
    layer.weight.grad = direction * magnitude
    AdderSGD(layer.parameters(), lr=1.0, eta=0.5).step()
    want = 0.5 * before.numel() ** 0.5 * direction / direction.norm()
    torch.testing.assert_close(before - layer.weight.detach(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_gradient_of_a_large_layer_is_no_update(dtype):
    """timm begins residual branches with zero batch norms: the filters in them have gradients of nothing but zeros."""
    layer = Adder2d(512, 512, 3, bias=False, dtype=dtype)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(layer.weight)
    AdderSGD(layer.parameters(), lr=0.1).step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_smallest_gradient_is_scaled_like_any_other(dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # subnormal
    layer = Adder2d(4, 4, 1, bias=False, dtype=dtype)
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[1, 2] = smallest
    before = layer.weight.detach().clone()
    AdderSGD(layer.parameters(), lr=1.0, eta=0.25).step()
    moved = before - layer.weight.detach()
    assert moved.flatten().nonzero().tolist() == [[6]]
    # α·ΔL = η·√k = 1 in the one direction; w - 1 is rounded
    assert abs(moved[1, 2].item() - 1) <= 4 * torch.finfo(dtype).eps


def test_zero_missing_and_nan_gradients():
    model = nn.Sequential(Adder2d(1, 2, 3, bias=False), Adder2d(2, 2, 3, bias=False), Adder2d(2, 2, 3, bias=False))
    before = [p.detach().clone() for p in model.parameters()]
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    model[2].weight.grad[0, 0, 0, 0] = float("nan")
    AdderSGD(model.parameters(), lr=0.1).step()
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(model[1].weight, before[1])
    assert model[2].weight.isnan().any()


def test_adder_weights_are_found_by_module_after_copies_and_in_any_grouping():
    model = copy.deepcopy(network())
    groups = [{"params": [model[3].weight, model[0].weight], "eta": 0.1}, {"params": [model[5].weight]}]
    optimizer = AdderSGD(groups, 0.1)
    assert [g["adder"] for g in optimizer.param_groups] == [[False, True], [True]]
    assert [g["eta"] for g in optimizer.param_groups] == [0.1, 0.2]


def test_state_survives_saving():
    def run(steps, state=None, weights=None):
        model = network()
        optimizer = AdderSGD(model.parameters(), 0.1, 0.9)
        if state is not None:
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
        for step in steps:
            optimizer.zero_grad()
            plain(model, optimizer, *batch(seed=step))
        return model, optimizer

    whole, _ = run(range(4))
    model, optimizer = run(range(2))
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), model.state_dict()], buffer)
    buffer.seek(0)
    resumed, _ = run(range(2, 4), *torch.load(buffer))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    again = copy.deepcopy(optimizer)
    assert again.defaults == optimizer.defaults


def test_closure():
    model = network()
    optimizer = AdderSGD(model.parameters(), 0.1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, *batch())
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.item() > 0
    assert_close([p.detach() for p in model.parameters()], updated_once())


def updated_once():
    model = network()
    plain(model, AdderSGD(model.parameters(), 0.1), *batch())
    return [p.detach() for p in model.parameters()]


def test_timm_builds_it_by_name():
    model = timm.create_model("adder_lenet5_bn")
    optimizer = timm.optim.create_optimizer_v2(model, opt="addersgd", lr=0.1, weight_decay=5e-4)
    assert type(optimizer) is AdderSGD
    assert sum(map(sum, (g["adder"] for g in optimizer.param_groups))) == 5
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adder_lr": "alr"}, "adder_lr"),
        ({"eta": -1.0}, "eta"),
        ({"factor": float("nan")}, "factor"),
        ({"lr": -1.0}, "learning rate"),
    ],
)
def test_options_without_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AdderSGD(network().parameters(), **{"lr": 0.1, **options})


def test_filters_in_parts_know_the_norm_of_the_whole():
    """FSDP 2 on two processes: half of a filter's gradient has another norm than all of it."""
    script = SUPPORT / "sharded_optimizer.py"
    assert run_in_two_processes(script) == ["process 0: equal\n", "process 1: equal\n"]

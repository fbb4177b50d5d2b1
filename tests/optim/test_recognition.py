"""``AdderSGD`` finds the filters of adder layers whatever was done to network and optimizer, or says so."""

import copy
import importlib
import io
import pickle
import threading
import warnings

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import adder_zoo.layers
import adder_zoo.optim
from adder_zoo import Adder2d, AdderLinear, AdderSGD, adder2d, adder_parameters, convert_to_adder
from adder_zoo.living import Living


def convolutional():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))


def network():
    return convert_to_adder(convolutional())


def moved(parameters, optimizer, gradient=1e-3):
    """By how much one step with a constant gradient moves each of ``parameters``: η·lr where it is a filter."""
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.full_like(p, gradient)
    optimizer.step()
    return [(b - p.detach()).mean().item() for b, p in zip(before, parameters, strict=True)]


def check(model, optimizer, names=("2.weight",), lr=1.0, eta=0.5):
    got = dict(zip(dict(model.named_parameters()), moved(list(model.parameters()), optimizer), strict=True))
    assert set(names) <= set(got)
    for name, move in got.items():
        assert move == pytest.approx(lr * eta if name in names else lr * 1e-3, rel=1e-3), name


def sgd(parameters, **options):
    return AdderSGD(parameters, lr=1.0, eta=0.5, **options)


def test_network_that_is_converted_later():
    model = convolutional()
    optimizer = sgd(model.parameters())
    check(convert_to_adder(model), optimizer)


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 2))
        self.b = nn.Parameter(torch.randn(2, 27))

    def forward(self, w):
        return w + (self.a @ self.b).view_as(w)


COMPUTED = {
    "prune": (lambda m: prune.l1_unstructured(m, "weight", 0.5), ["weight_orig"]),
    "pruned twice": (lambda m: prune.random_unstructured(prune.identity(m, "weight"), "weight", 0.5), ["weight_orig"]),
    "old weight_norm": (nn.utils.weight_norm, ["weight_g", "weight_v"]),
    "old spectral_norm": (nn.utils.spectral_norm, ["weight_orig"]),
    "weight_norm": (
        parametrizations.weight_norm,
        ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    ),
    "spectral_norm": (parametrizations.spectral_norm, ["parametrizations.weight.original"]),
    "orthogonal": (parametrizations.orthogonal, ["parametrizations.weight.original"]),
    "low rank": (
        lambda m: parametrize.register_parametrization(m, "weight", LowRank()),
        ["parametrizations.weight.original", "parametrizations.weight.0.a", "parametrizations.weight.0.b"],
    ),
    "parametrised bias": (lambda m: parametrize.register_parametrization(m, "bias", nn.Tanh()), ["weight"]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("built", ["before", "after", "after a copy"])
def test_filters_that_are_computed(name, built):
    """What the filter is computed from is scaled, each with its own norm and number of elements."""
    if built == "after a copy" and name in ("prune", "pruned twice", "old weight_norm"):
        pytest.skip("torch copies no network with these")
    compute, expected = COMPUTED[name]
    model = network()
    model[2] = Adder2d(3, 4, 3)
    optimizer = sgd(model.parameters()) if built == "before" else None
    compute(model[2])
    if built == "after a copy":
        model = copy.deepcopy(model)
    names = [f"2.{name}" for name in expected]
    parameters = dict(model.named_parameters())
    assert {id(p) for p in adder_parameters(model)} == {id(parameters[name]) for name in names}
    assert len(list(adder_parameters(model))) == len(names)
    assert all(p.is_leaf and isinstance(p, nn.Parameter) for p in adder_parameters(model))
    if optimizer is not None:
        new = [p for p in model.parameters() if all(p is not q for q in optimizer.param_groups[0]["params"])]
        if new:
            optimizer.add_param_group({"params": new})
    check(model, optimizer or sgd(model.parameters()), names)


def test_pruned_elements_count_in_k_and_stay_pruned():
    layer = Adder2d(1, 2, 2, bias=False)
    prune.custom_from_mask(layer, "weight", torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1]).view(2, 1, 2, 2))
    optimizer = sgd(layer.parameters())
    before = layer.weight_orig.detach().clone()
    F.mse_loss(layer(torch.randn(3, 1, 5, 5)), torch.zeros(3, 2, 4, 4)).backward()
    gradient = layer.weight_orig.grad
    assert (gradient != 0).sum() == 5
    optimizer.step()
    torch.testing.assert_close(before - layer.weight_orig, 0.5 * 8**0.5 * gradient / gradient.norm())


def test_a_shared_filter_comes_once():
    a, b = Adder2d(2, 2, 3), Adder2d(2, 2, 3)
    b.weight = a.weight
    assert [id(p) for p in adder_parameters(nn.Sequential(a, b, a))] == [id(a.weight)]


@pytest.mark.parametrize("kind", ["plain SGD", "of a convolutional twin", "of another group"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_state_that_knows_nothing_of_filters(kind, momentum):
    twin, model = convolutional(), network()
    other = (
        torch.optim.SGD(twin.parameters(), lr=1.0, momentum=momentum)
        if kind == "plain SGD"
        else AdderSGD(twin.parameters(), lr=1.0, momentum=momentum, eta=0.5)
    )
    moved(list(twin.parameters()), other, gradient=0.0)
    optimizer = sgd(model.parameters(), momentum=momentum)
    state = copy.deepcopy(other.state_dict())
    if kind == "of another group":
        state["param_groups"][0]["adder"] = [True] * 6 + [False]
    optimizer.load_state_dict(state)
    check(model, optimizer)


def test_state_of_plain_sgd_leaves_each_group_its_own_options():
    model = network()
    groups = [{"params": [p], "eta": 0.1 * (i + 1)} for i, p in enumerate(model.parameters())]
    optimizer = AdderSGD(groups, lr=1.0)
    optimizer.load_state_dict(torch.optim.SGD(groups, lr=1.0).state_dict())
    assert [g["eta"] for g in optimizer.param_groups] == [0.1 * (i + 1) for i in range(7)]
    assert {g["adder_lr"] for g in optimizer.param_groups} == {"adaptive"}


def test_layers_module_that_is_loaded_again():
    old = network()
    names = dict(vars(adder_zoo.layers))
    try:
        importlib.reload(adder_zoo.layers)
        new = adder_zoo.layers.Adder2d(3, 4, 3)
        assert type(new) is not Adder2d
        check(old, sgd(old.parameters()))
        assert [id(p) for p in adder_parameters(old)] == [id(old[2].weight)]
        assert [id(p) for p in adder_zoo.layers.adder_parameters(old)] == [id(old[2].weight)]
        check(new, sgd(new.parameters()), ["weight"])
    finally:
        vars(adder_zoo.layers).update(names)


@pytest.mark.parametrize("opt", ["addersgd", "adder_sgd", "AdderSGD", "Adder_SGD", "lookahead_adder_sgd"])
def test_timm_builds_it_by_either_name(opt):
    model = network()
    optimizer = create_optimizer_v2(model, opt=opt, lr=1.0, momentum=0.0, weight_decay=0.0, eta=0.5, nesterov=False)
    base = getattr(optimizer, "_base_optimizer", optimizer)
    assert type(base) is AdderSGD
    check(model, base)
    assert timm.optim.get_optimizer_class("adder_sgd", bind_defaults=False) is AdderSGD


@pytest.mark.parametrize(("opt", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_timm_builds_the_others_as_ever(opt, kind):
    assert type(create_optimizer_v2(network(), opt=opt, lr=0.1)) is kind


def test_parameters_that_are_swapped():
    model = network()
    optimizer = sgd(model.parameters())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model[2].weight.dtype == torch.float64
    check(model, optimizer)


def test_parameters_that_are_replaced_in_layer_and_group():
    model = network()
    optimizer = sgd(model.parameters())
    model[2].weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    check(model, optimizer)


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copies_of_network_and_optimizer(copied):
    model = network()
    model, optimizer = copied((model, sgd(model.parameters())))
    check(model, optimizer)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_copies_of_an_optimizer_alone(copied):
    """Its parameters are copies that no layer holds."""
    model = network()
    optimizer = copied(copied(sgd(model.parameters())))
    (group,) = optimizer.param_groups
    moves = moved(group["params"], optimizer)
    assert [move > 0.1 for move in moves] == [False, False, False, False, True, False, False]


def test_wrapped_networks():
    model = network()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = sgd(wrapped.parameters())
        assert len(list(adder_parameters(wrapped))) == 1
        check(model, optimizer)
    finally:
        dist.destroy_process_group()
    compiled = torch.compile(network(), backend="eager")
    assert len(list(adder_parameters(compiled))) == 1
    check(compiled._orig_mod, sgd(compiled.parameters()))


def test_from_the_meta_device():
    with torch.device("meta"):
        model = network()
    model.to_empty(device="cpu")
    for module in model:
        module.reset_parameters()
    check(model, sgd(model.parameters()))


def test_half_made_layers_harm_nobody():
    with pytest.raises(ValueError, match="at least one feature"):
        kept = AdderLinear(0, 3)
    half = [Adder2d.__new__(Adder2d), copy.copy(Adder2d(1, 1, 1))]
    nn.Module.__init__(half[1])
    plain = nn.Linear(2, 2)
    assert moved(list(plain.parameters()), sgd(plain.parameters())) == pytest.approx([1e-3] * 2, rel=1e-3)
    check(model := network(), sgd(model.parameters()))
    with pytest.raises(NameError):
        kept  # noqa: B018


def test_layers_that_another_thread_makes_meanwhile():
    model = network()
    optimizer = sgd(model.parameters())
    stop = threading.Event()
    kept = []

    def make():
        while not stop.is_set():
            kept.append(Adder2d.__new__(Adder2d))
            if len(kept) > 500:
                kept.clear()

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            optimizer.step()
            assert optimizer.param_groups[0]["adder"].count(True) == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_nothing_is_looked_through_where_nothing_is_odd(monkeypatch):
    models = [network(), network()]
    others = [sgd(model.parameters()) for model in models]
    alive = Living()  # without those that compiled code of other tests holds on to
    for model in models:
        alive.add(model[2])
    monkeypatch.setattr(adder_zoo.optim, "LAYERS", alive)
    monkeypatch.setattr(adder_zoo.optim, "_network_of", lambda *_: pytest.fail("looked through all that is alive"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = convolutional()
        moved(list(plain.parameters()), sgd(plain.parameters()))
    assert others


def test_warns_once_where_its_network_has_filters_and_it_has_none():
    model = network()
    optimizer = sgd(model[3].parameters())
    with pytest.warns(UserWarning, match="Sequential holds adder layers, and none of the parameters") as caught:
        moved(list(model[3].parameters()), optimizer)
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved(list(model[3].parameters()), optimizer)
        moved(list(model[3].parameters()), pickled(optimizer))


def test_warns_where_a_filter_was_replaced_by_one_that_it_does_not_know():
    model = network()
    model[2].weight.requires_grad_(False)
    optimizer = sgd([p for p in model.parameters() if p.requires_grad])
    model[2].weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    with pytest.warns(UserWarning, match="none of the parameters"):
        moved(list(model[3].parameters()), optimizer)


def test_warns_where_a_filter_that_it_knew_was_replaced():
    model = network()
    optimizer = sgd(model.parameters())
    nn.utils.parametrizations.weight_norm(model[2])  # whose lengths and directions are new parameters
    with pytest.warns(UserWarning, match="none of the parameters"):
        moved(list(model[3].parameters()), optimizer)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_state_of_another_kind_of_optimizer_is_refused(kind):
    model = network()
    optimizer = sgd(model.parameters())
    with pytest.raises(ValueError, match=r"the state of another optimizer, without .*dampening"):
        optimizer.load_state_dict(kind(model.parameters()).state_dict())
    moved(list(model.parameters()), optimizer)


@pytest.mark.parametrize("reason", ["frozen", "another network's", "another optimizer's", "asked for"])
def test_no_warning_where_plain_sgd_is_meant(reason):
    model, options = network(), {}
    others = [network()]
    if reason == "frozen":
        model[2].weight.requires_grad_(False)
    elif reason == "another network's":
        others.append(model)
        model = convolutional()
    elif reason == "another optimizer's":
        others.append(sgd([model[2].weight]))
    else:
        options = {"adder_lr": "none"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = [p for name, p in model.named_parameters() if name != "2.weight"]
        moved(rest, sgd(rest, **options))


def test_filters_that_no_layer_holds():
    w, b = nn.Parameter(torch.randn(2, 3, 3, 3)), nn.Parameter(torch.zeros(2))
    optimizer = sgd([{"params": [w], "filters": True}, {"params": [b]}])
    adder2d(torch.randn(1, 3, 5, 5), w, b).square().sum().backward()
    optimizer.load_state_dict(torch.optim.SGD([{"params": [w]}, {"params": [b]}], lr=1.0).state_dict())
    assert moved([w, b], optimizer) == pytest.approx([0.5, 1e-3], rel=1e-3)
    optimizer.load_state_dict(sgd([{"params": [w]}, {"params": [b]}]).state_dict())
    assert moved([w, b], optimizer) == pytest.approx([0.5, 1e-3], rel=1e-3)


def test_filters_is_true_or_false():
    with pytest.raises(ValueError, match="filters must be True or False"):
        sgd([{"params": [nn.Parameter(torch.ones(2))], "filters": [True]}])


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_ways_to_compute_are_those_of_sgd(options):
    model = network()
    optimizer = sgd(model.parameters(), momentum=0.9, **options)
    plain = sgd((twin := copy.deepcopy(model)).parameters(), momentum=0.9)
    for step in range(3):
        torch.manual_seed(step)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


def test_loss_scale_is_gone_before_a_fused_step():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model = network()
    optimizer = sgd(model.parameters(), fused=True)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(sum(p.sum() for p in model.parameters()) * 1e-3).backward()
    scaler.step(optimizer)
    moves = [(b - p.detach()).mean().item() for b, p in zip(before, model.parameters(), strict=True)]
    assert moves == pytest.approx([1e-3] * 4 + [0.5] + [1e-3] * 2, rel=1e-3)


def test_compiled_step():
    """torch.compile takes the gradients of the first step that it sees as constants if they are not SGD's own."""
    model = network()
    twin = copy.deepcopy(model)
    optimizer, other = sgd(model.parameters(), momentum=0.9), sgd(twin.parameters(), momentum=0.9)
    step = torch.compile(lambda: other.step(), backend="eager")
    for seed in range(4):
        torch.manual_seed(seed)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone() if q.grad is None else q.grad.copy_(p.grad)
        optimizer.step()
        step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)


def test_step_hooks_run_once():
    model = network()
    optimizer, calls = sgd(model.parameters()), []
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]

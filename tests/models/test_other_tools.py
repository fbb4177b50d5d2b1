"""What torch's and timm's tools around a training do with adder layers; docs/compatibility.md has the whole list."""

import argparse
import copy
import warnings

import pytest
import timm
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2, optimizer_kwargs
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.optim import ZeroRedundancyOptimizer, _apply_optimizer_in_backward
from torch.nn.utils import parametrizations, prune

import adder_zoo
from adder_zoo import Adder2d, AdderSGD, convert_to_adder


def network():
    torch.manual_seed(0)
    return convert_to_adder(
        nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        )
    )


def images(n=8):
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 5


def trained(model, optimizer, steps=1):
    x, labels = images()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def assert_same(a, b):
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.filterwarnings("ignore:fuse", "ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    "compute",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
    ids=["prune", "weight_norm", "spectral_norm"],
)
def test_network_with_computed_filters(compute):
    """One graph for torch.compile, the right count, and ``fuse`` leaves the layer as it is."""
    model = network()
    compute(model[2])
    trained(model, AdderSGD(model.parameters(), lr=0.1)).eval()
    x, _ = images()
    want = model(x)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    assert adder_zoo.report(model, (2, 8, 8)).total.taps == 3 * 36 * 18 + 4 * 16 * 27 + 20
    with torch.no_grad():
        fused = adder_zoo.fuse(model)
        assert torch.equal(fused(x), want)
        assert isinstance(fused[2], Adder2d)


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint(flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = network()
    optimizer = AdderSGD(model.parameters(), lr=0.1, momentum=0.9)
    trained(model, optimizer)
    weights, state = get_state_dict(model, optimizer, options=options)
    again = network()
    other = AdderSGD(again.parameters(), lr=0.3, momentum=0.5)
    set_state_dict(again, other, model_state_dict=weights, optim_state_dict=copy.deepcopy(state), options=options)
    assert_same(trained(model, optimizer), trained(again, other))


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_zero_redundancy_optimizer(one_process):
    model, twin = network(), network()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    optimizer = ZeroRedundancyOptimizer(model.parameters(), AdderSGD, **options)
    assert_same(trained(model, optimizer, 3), trained(twin, AdderSGD(twin.parameters(), **options), 3))


def test_optimizer_in_the_backward_pass():
    """One optimizer for each parameter: an optimizer that gets no filter does not warn."""
    model, twin = network(), network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _apply_optimizer_in_backward(AdderSGD, model.parameters(), {"lr": 0.1})
        x, labels = images()
        nn.functional.cross_entropy(model(x), labels).backward()
    assert_same(model, trained(twin, AdderSGD(twin.parameters(), lr=0.1)))


def test_named_parameters_and_learning_rates_as_tensors():
    model, twin = network(), network()
    optimizer = AdderSGD(model.named_parameters(), lr=torch.tensor(0.1))
    assert optimizer.param_groups[0]["param_names"][4] == "2.weight"
    trained(model, optimizer)
    trained(twin, AdderSGD(twin.parameters(), lr=0.1))
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


def test_averaged_model_and_its_batch_norm():
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = AdderSGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(2):
        seen.append(trained(model, optimizer)[2].weight.detach().clone())
        average.update_parameters(model)
    torch.testing.assert_close(average.module[2].weight.detach(), (seen[0] + seen[1]) / 2)
    torch.optim.swa_utils.update_bn([images()[0]], average)
    assert average.module[3].num_batches_tracked == 1


def test_batch_norm_over_processes():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert [type(m) for m in model[1:4]] == [nn.SyncBatchNorm, Adder2d, nn.SyncBatchNorm]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripting_is_refused():
    """torch.jit.script is deprecated and does not understand postponed annotations; trace, compile and export do."""
    with pytest.raises(ValueError, match="Unknown type annotation"):
        torch.jit.script(Adder2d(2, 3, 3))


def arguments(**options):
    """What timm's train.py reads from its command line, as far as an optimizer is concerned."""
    known = {"opt": "addersgd", "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "opt_eps": None, "opt_betas": None}
    known |= {"layer_decay": None, "opt_foreach": None, "opt_args": None, "opt_kwargs": {}, "model": "adder_lenet5_bn"}
    return argparse.Namespace(**known | options)


@pytest.mark.parametrize(
    ("options", "groups"),
    [({}, 2), ({"opt_kwargs": {"eta": 0.1}}, 2), ({"layer_decay": 0.7}, 10), ({"opt_foreach": True}, 2)],
    ids=["plain", "--opt-kwargs", "--layer-decay", "--opt-foreach"],
)
def test_optimizer_options_of_timms_train(options, groups):
    model = timm.create_model("adder_lenet5_bn")
    args = arguments(**options)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    assert type(optimizer) is AdderSGD
    assert len(optimizer.param_groups) == groups
    assert {g["eta"] for g in optimizer.param_groups} == {args.opt_kwargs.get("eta", 0.2)}
    assert sum(sum(g["adder"]) for g in optimizer.param_groups) == 5
    decayed = {p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert set(adder_zoo.adder_parameters(model)) <= decayed


@pytest.mark.parametrize("clip", [{}, {"clip_grad": 1.0}, {"clip_grad": 1.0, "clip_mode": "value"},
    {"clip_grad": 0.01, "clip_mode": "agc"}], ids=["none", "norm", "value", "agc"])  # fmt: skip
def test_loop_of_timms_train(tmp_path, clip):
    """Scaler, clipping, average of the weights, schedule, saving and resuming."""
    from timm.models import model_parameters, resume_checkpoint
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler

    model = timm.create_model("adder_lenet5_bn")
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=arguments()))
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=3, warmup_epochs=1)
    average, scaler = ModelEmaV3(model, decay=0.5), NativeScaler("cpu")
    x, labels = torch.randn(8, 1, 32, 32), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), labels)
    before = [p.detach().clone() for p in adder_zoo.adder_parameters(model)]
    scaler(loss, optimizer, parameters=model_parameters(model, exclude_head=True), **clip)
    for p, b in zip(adder_zoo.adder_parameters(model), before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, b)
    average.update(model)
    scheduler.step(1)
    saver = CheckpointSaver(model, optimizer, arguments(), average, scaler, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, 0.5)
    again = timm.create_model("adder_lenet5_bn")
    other = create_optimizer_v2(again, **optimizer_kwargs(cfg=arguments()))
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), other, log_info=False) == 1
    assert_same(model, again)
    assert [g["adder"] for g in other.param_groups] == [g["adder"] for g in optimizer.param_groups]

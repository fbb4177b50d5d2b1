"""What the loop does with its settings."""

import csv

import mnist
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from recipe_runs import FEW
from safetensors.torch import load_file

import adder_zoo
from adder_zoo.training import RecipeError


@pytest.mark.parametrize("similarity", ["adder", "conv"])
def test_accumulation_is_one_update(tmp_path, alone, similarity):
    flags = ["--limit-batches", "8", "--gradient-accumulation-steps", "3", "--similarity", similarity, "--epochs", "1"]
    results = mnist.main([*FEW, *flags, "--output-dir", str(tmp_path)])
    assert results["updates"] == 3  # of 3, 3 and 2 batches
    assert results["similarity"] == similarity


def test_divergence_stops_with_a_message(tmp_path, alone):
    with pytest.raises(RecipeError, match="diverged"):
        mnist.main([*FEW, "--similarity", "conv", "--lr", "1e30", "--output-dir", str(tmp_path)])
    assert not (tmp_path / "results.json").exists()
    assert not list((tmp_path / "checkpoints").glob("update-*"))  # of nothing that went wrong


def test_weights_that_are_not_finite_are_not_kept(alone, tmp_path, monkeypatch):
    """The last update of an epoch can spoil the weights without a loss that shows it."""
    step = adder_zoo.AdderSGD.step

    def spoiled(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(updates) == 9:
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    updates = iter(range(10**6))
    monkeypatch.setattr(adder_zoo.AdderSGD, "step", spoiled)
    argv = [*FEW, "--epochs", "3", "--output-dir", str(tmp_path)]
    with pytest.raises(RecipeError, match="update-00000005 is the last checkpoint before it"):
        mnist.main(argv)
    assert [p.name for p in (tmp_path / "checkpoints").glob("update-*")] == ["update-00000005"]


@pytest.mark.parametrize(("flags", "rates"), [([], [0.1, 0.05]), (["--poly-power", "2"], [0.1, 0.025])])
def test_polynomial_schedule(alone, tmp_path, flags, rates):
    mnist.main([*FEW, "--sched", "poly", *flags, "--output-dir", str(tmp_path)])
    assert [float(row["lr"]) for row in csv.DictReader((tmp_path / "log.csv").open())] == pytest.approx(rates)


@pytest.mark.parametrize(
    "flags",
    [
        ["--mixed-precision", "bf16"],
        ["--opt", "adamw", "--lr", "0.001"],
        ["--deterministic"],
        ["--pretrained"],
        ["--sched", "poly", "--adder-lr", "increased", "--weight-grad", "sign"],
    ],
    ids=lambda flags: flags[0],
)
def test_option_trains(alone, tmp_path, flags):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        results = mnist.main([*FEW, *flags, "--epochs", "1", "--output-dir", str(tmp_path)])
    finally:
        torch.use_deterministic_algorithms(before)
    assert results["train_loss"] < 3
    if flags == ["--pretrained"]:
        assert results["test_accuracy"] > 80


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_network_trains_alike(alone, tmp_path, monkeypatch, backend):
    """Under --compile the same losses within rounding, and saved weights that bear no names of the compiler's."""
    compiles = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiles(module, backend=backend))
    plain = mnist.main([*FEW, "--epochs", "1", "--output-dir", str(tmp_path / "plain")])
    AcceleratorState._reset_state(True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = mnist.main([*FEW, "--epochs", "1", "--compile", "--output-dir", str(tmp_path / "compiled")])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    weights = [load_file(tmp_path / which / "model.safetensors") for which in ("plain", "compiled")]
    assert weights[0].keys() == weights[1].keys()


def test_average_of_the_weights_is_measured_and_saved(alone, tmp_path):
    results = mnist.main([*FEW, "--model-ema", "--model-ema-decay", "0.5", "--output-dir", str(tmp_path)])
    ema, last = (load_file(tmp_path / f / "model.safetensors") for f in ("ema", "."))
    assert any(not torch.equal(ema[k], last[k]) for k in ema)
    assert 0 <= results["ema_test_accuracy"] <= 100
    model = timm.create_model(f"local-dir:{tmp_path / 'ema'}", pretrained=True).eval()
    images, labels = mnist.load("fashion_mnist", mnist.SAMPLE)[0]["test"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: 5 * 32]
    with torch.no_grad():
        hits = model(mnist.preprocessed(images[order], model)).argmax(1) == labels[order]
    assert 100 * hits.float().mean() == pytest.approx(results["ema_test_accuracy"], abs=1e-3)

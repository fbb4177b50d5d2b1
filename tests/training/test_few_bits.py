"""``--bits`` and ``--init``: fine-tuning a trained float network for integers of few bits."""

import mnist
import pytest
import timm
import torch
import torch.nn.functional as F
from recipe_runs import FEW
from safetensors.torch import load_file, save_file

import adder_zoo
from adder_zoo.hub import save_pretrained
from adder_zoo.training import RecipeError, create_networks
from adder_zoo.training.objectives import Distilled

TAG = "adder_lenet5_bn.fashion_mnist"


def config(*flags):
    return adder_zoo.training.parse_settings(mnist.Config, "", flags)


def test_a_run_ends_with_the_integers_that_it_trained(alone, tmp_path):
    flags = ["--init", TAG, "--bits", "2", "--distillation", "float", "--lr", "0.003", "--output-dir", str(tmp_path)]
    results = mnist.main([*FEW, *flags])
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    layers = [m for m in network.modules() if isinstance(m, adder_zoo.Adder2d)]
    assert all(layer.input_range[2] == 3 for layer in layers)
    assert not torch.equal(layers[0].weight, timm.create_model(TAG, pretrained=True).stages[0].conv.weight)
    assert results["quantized_test_accuracy"] == pytest.approx(results["test_accuracy"], abs=100 / 160)
    assert results["test_accuracy"] > 50  # of ten classes


@pytest.mark.parametrize("form", ["folder", "file", "tag"])
def test_init_takes_a_folder_a_checkpoint_and_a_name(form, tmp_path):
    trained = timm.create_model(TAG, pretrained=True)
    save_pretrained(trained, tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "file")
    save_file(load_file(tmp_path / "file"), tmp_path / "file.safetensors")
    (tmp_path / "file").rename(tmp_path / "folder" / "model.safetensors")
    source = {"folder": str(tmp_path / "folder"), "file": str(tmp_path / "file.safetensors"), "tag": TAG}[form]
    settings = config("--dataset", "fashion_mnist", "--init", source, "--weight-grad", "sign")
    model, _ = create_networks(settings, TAG, num_classes=10, in_chans=1)
    wanted = trained.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
    assert {m.weight_grad for m in model.modules() if isinstance(m, adder_zoo.Adder2d)} == {"sign"}


def test_init_refuses_another_network(tmp_path):
    with pytest.raises(RecipeError, match=r"--init adder_lenetpp.mnist is adder_lenetpp, and --model is adder_lenet5"):
        create_networks(config("--init", "adder_lenetpp.mnist"), TAG, in_chans=1)
    with pytest.raises(RecipeError, match="--init no_such_network: "):
        create_networks(config("--init", "no_such_network"), TAG)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(RecipeError, match=r"--init .*junk.pth: "):
        create_networks(config("--init", str(tmp_path / "junk.pth")), TAG)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bits", "4"], "name it by --init, or give --pretrained"),
        (["--bits", "9", "--pretrained"], "--bits must be 0 or from 2 to 8, got 9"),
        (["--bits", "1", "--pretrained"], "--bits must be 0 or from 2 to 8, got 1"),
        (["--bits", "4", "--pretrained", "--similarity", "conv"], "leave --similarity at adder"),
        (["--bits", "4", "--pretrained", "--l2-to-l1", "2"], "leave --l2-to-l1 out"),
        (["--init", TAG, "--pretrained"], "leave --pretrained out"),
        (["--distillation", "float"], "give --bits as well"),
    ],
)
def test_settings_that_do_not_go_together(flags, words):
    with pytest.raises(RecipeError, match=words):
        config(*flags)


def test_the_float_network_teaches_and_stays(alone):
    settings = config("--pretrained", "--bits", "4", "--distillation", "float", "--dataset", "fashion_mnist")
    student, teacher = create_networks(settings, TAG, num_classes=10, in_chans=1)
    objective = Distilled(student, teacher, alpha=0.3).train()
    assert student.training
    assert not any(module.training for module in teacher.modules())
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 32, 32), torch.arange(8)
    loss, logits = objective(images, labels)
    with torch.no_grad():
        answers = timm.create_model(TAG, pretrained=True).eval()(images).softmax(1)
    soft = -(answers * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, 0.3 * F.cross_entropy(logits, labels) + 0.7 * soft, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_pkkd_teaches_a_network_of_few_bits(alone, tmp_path):
    flags = ["--init", TAG, "--bits", "4", "--distillation", "pkkd", "--epochs", "1", "--lr", "0.001"]
    results = mnist.main([*FEW, *flags, "--output-dir", str(tmp_path)])
    assert results["quantized_test_accuracy"] > 50

"""Settings from flags and files, and what is refused before anything is written."""

import importlib
import sys

import cifar
import imagenet
import mnist
import pytest
from recipe_runs import FEW, SMALL

import adder_zoo.training
from adder_zoo.training import RecipeError, parse_settings


def test_config_file_and_flags(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7.0\nlr: 5e-2\nbatch-size: 64\n")
    config = parse_settings(mnist.Config, "", ["--config", str(file), "--epochs", "9"])
    assert (config.epochs, config.lr, config.batch_size, config.eta) == (9, 0.05, 64, 0.2)
    for text, words in (
        ("speed: 3", "unknown settings speed"),
        ("epochs: many", "argument --epochs: invalid int value: 'many'"),
        ("- 1", "by name"),
        ("similarity: xor", "argument --similarity: invalid choice: 'xor'"),
    ):
        file.write_text(text)
        with pytest.raises(SystemExit):
            parse_settings(mnist.Config, "", ["--config", str(file)])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_settings(mnist.Config, "", ["--similarity", "xor"])


@pytest.mark.parametrize(
    ("recipe", "epochs", "weight_decay"), [(mnist, 50, 5e-4), (cifar, 400, 5e-4), (imagenet, 150, 1e-4)]
)
def test_paper_settings_are_the_defaults(recipe, epochs, weight_decay):
    c = recipe.Config()
    assert (c.epochs, c.batch_size, c.lr, c.momentum, c.weight_decay) == (epochs, 256, 0.1, 0.9, weight_decay)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (mnist, ["η of Eq. 13; the paper names none"]),
        (cifar, ["sec. 4.2 says polynomial and no power", "names it for MNIST only", "the paper names none"]),
        (imagenet, ["the paper names no rate for ImageNet", "η of Eq. 13; the paper names none", "He et al. crop from",
                    "224 of 256 pixels", "as timm's ResNets do"]),
    ],
)  # fmt: skip
def test_help_says_where_the_defaults_are_not_the_papers(recipe, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_settings(recipe.Config, recipe.__doc__, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert all(part in said for part in words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--epochs", "0"], "--epochs must be at least 1"), (["--data-dir", "/nowhere"], "no fashion_mnist found")],
)
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, flags, words):
    with pytest.raises((RecipeError, mnist.DataError), match=words):
        mnist.main([*SMALL, "--output-dir", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opt", "sdg"], "--opt sdg"),
        (["--model", "adder_lenet7"], "--model adder_lenet7"),
        (["--sync-bn"], "GPUs only"),
        (["--report-to", "tensorbored"], "Accelerate knows"),
        (["--smoothing", "2"], "between 0 and 1"),
        (["--distillation", "pkkd", "--similarity", "conv"], "leave --similarity at adder"),
        (["--distillation", "trained"], "give both, or neither"),
        (["--distillation", "pkkd", "--teacher", "x"], "give both, or neither"),
        (["--distillation", "trained", "--teacher", "x", "--kd-temperature", "0"], "must be above 0"),
        (["--drop-path", "0.1"], "drop_path_rate"),
        (["--l2-to-l1", "3"], "ends after 2 epochs, before the exponent is 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--mixed-precision", "fp16"], "fp16 is for GPUs"),
        (["--model", "resnet50"], "there are adder_lenet5_bn"),
        (["--similarity", "conv", "--pretrained"], "--model adder_lenet5_bn"),
    ],
)
def test_what_cannot_be_met_is_refused(alone, tmp_path, flags, words):
    with pytest.raises(RecipeError, match=words):
        mnist.main([*FEW, "--output-dir", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


def test_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"needs accelerate: pip install 'adder_zoo\[recipes\]'"):
        importlib.reload(adder_zoo.training)

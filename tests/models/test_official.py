"""The ResNet-20 that the paper's authors trained, imported: its answers against the equations, its accuracy."""

import json

import pytest
import timm
import torch
import truth
from click.testing import CliRunner
from PIL import Image

from adder_zoo import Adder2d
from adder_zoo.checkpoints import load_checkpoint
from adder_zoo.cli import main
from adder_zoo.models import WEIGHTS

FILE = "official_addernet/ResNet20-AdderNet.pth"
ACCURACY = 91.82  # measured with the authors' own code


@pytest.fixture
def file(data_dir):
    if not (data_dir / FILE).is_file():
        pytest.skip(f"needs the authors' checkpoint, {FILE} in ADDER_ZOO_DATA")
    return data_dir / FILE


def images_of(data_dir, root, sheets):
    """Test images as a folder that torchvision and timm read, made from ``sheets`` of 1,000 in ADDER_ZOO_DATA."""
    files = sorted((data_dir / "cifar10").glob("test_*.webp"))
    if len(files) != 10:
        pytest.skip("needs CIFAR-10 as sheets of 1,000 images, cifar10/test_*.webp in ADDER_ZOO_DATA")
    names = (data_dir / "cifar10/classes.txt").read_text().split()
    labels = [int(c) for c in (data_dir / "cifar10/test_labels.txt").read_text().strip()]
    for name in names:
        (root / "test" / name).mkdir(parents=True)
    for s, sheet in enumerate(files[:sheets]):
        image = Image.open(sheet).convert("RGB")
        for i in range(1000):
            left, top = 32 * (i % 40), 32 * (i // 40)
            number = 1000 * s + i
            file = root / "test" / names[labels[number]] / f"{number:05d}.png"
            image.crop((left, top, left + 32, top + 32)).save(file)
    (root / "train").symlink_to(root / "test")  # the reader wants both splits; it measures on the test split
    return root


@pytest.fixture(scope="module")
def cifar10(data_dir, tmp_path_factory):
    return images_of(data_dir, tmp_path_factory.mktemp("cifar10"), 10)


@pytest.fixture(scope="module")
def thousand(data_dir, tmp_path_factory):
    """The first thousand of them."""
    return images_of(data_dir, tmp_path_factory.mktemp("thousand"), 1)


def preprocessed(paths, model):
    cfg = model.pretrained_cfg
    transform = timm.data.create_transform(**timm.data.resolve_data_config(cfg, model=model), is_training=False)
    return torch.stack([transform(Image.open(path)) for path in paths])


class Exact(torch.nn.Module):
    """An adder layer computed by ``truth``, in float64; ``noise`` adds what float32 rounding is expected to."""

    def __init__(self, layer, noise):
        super().__init__()
        self.layer = layer
        self.noise = noise

    def forward(self, x):
        padding = [self.layer.padding[0]] * 2 + [self.layer.padding[1]] * 2
        weight = self.layer.weight.numpy()
        y, magnitude, terms = truth.forward(x.numpy(), weight, self.layer.stride, padding)
        if self.noise:
            # Roundings are as good as random, so n of them add up to about sqrt(n)·u (Higham and Mary, SIAM J. Sci.
            # Comput. 41, 2019, Eq. 1.5) times the sums that are rounded, here those of the identity 2Σmax - Σx - Σw.
            parts = magnitude + truth.forward(x.numpy(), 0 * weight, self.layer.stride, padding)[1]
            y = y + (terms**0.5 * 2.0**-24 * parts) * torch.randn(y.shape, dtype=torch.float64).numpy()
        return torch.from_numpy(y)


def exact(network, noise=False):
    """The network in float64, its adder layers straight from the equations."""
    network = network.double()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, Adder2d):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, Exact(layer, noise))
    return network


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@torch.no_grad()
def test_every_layer_is_within_rounding_of_the_equations(file, impl):
    """On what each layer really gets: an error is held against the sum's own rounding, image by image."""
    network = load_checkpoint(file, "adder_resnet20", dataset="cifar10").to(memory_format=torch.channels_last)
    seen = []

    def check(layer, args, y):
        padding = [layer.padding[0]] * 2 + [layer.padding[1]] * 2
        true, magnitude, terms = truth.forward(args[0].numpy(), layer.weight.numpy(), layer.stride, padding)
        error = abs(y.double().numpy() - true)
        # Σ|x - w| itself, or 2Σmax(x, w) - Σx - Σw, whose parts are up to three times as large where x is.
        parts = magnitude + truth.forward(args[0].numpy(), 0 * layer.weight.numpy(), layer.stride, padding)[1]
        assert (error <= 3 * truth.gamma(terms + 2, 2.0**-24) * parts).all()
        seen.append(layer)

    for layer in network.modules():
        if isinstance(layer, Adder2d):
            layer.impl = impl
            layer.register_forward_hook(check)
    network(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last))
    assert len(seen) == 20


@torch.no_grad()
def test_logits_are_those_of_the_equations(file, thousand):
    """In float32 the network strays from float64 as far as rounding explains, and changes no answer but a close one."""
    paths = sorted((thousand / "test").glob("*/000*.png"))[:8]
    names = ("reference", "cpu", "exact", "rounded")
    networks = {name: load_checkpoint(file, "adder_resnet20", dataset="cifar10") for name in names}
    x = preprocessed(paths, networks["cpu"])
    true = exact(networks.pop("exact"))(x.double())
    explained = (exact(networks.pop("rounded"), noise=True)(x.double()) - true).abs().amax(1)
    for impl, network in networks.items():
        for layer in network.modules():
            if isinstance(layer, Adder2d):
                layer.impl = impl
        logits = network(x).double()
        error = (logits - true).abs().amax(1)
        assert error.square().mean() <= explained.square().mean(), impl
        first, second = true.topk(2).values.T
        changed = logits.argmax(1) != true.argmax(1)
        assert not (changed & (first - second > 2 * error)).any()


def validate(folder, cifar10, *options):
    result = CliRunner().invoke(
        main, ["validate", str(folder), "--dataset", "cifar10", "--data-dir", str(cifar10), "--json", *options]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("images", ["thousand", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_the_command_line_measures_the_published_accuracy(file, images, request, tmp_path):
    """With the fast kernels: exactly on the whole test set, and on a part of it within what chance explains."""
    folder = request.getfixturevalue(images)
    done = CliRunner().invoke(main, ["import", str(file), "--model", "adder_resnet20", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    result = validate(tmp_path / "out", folder, "--batch-size", "128")
    assert result["images"] == {"thousand": 1000, "cifar10": 10_000}[images]
    if images == "cifar10":
        assert round(result["top1"], 2) == ACCURACY
    deviation = (ACCURACY * (100 - ACCURACY) / result["images"]) ** 0.5
    assert abs(result["top1"] - ACCURACY) <= 3 * deviation


@pytest.mark.slow
def test_the_shipped_network_scores_what_its_results_say(cifar10):
    """The one trained here, on the same images; rounding may turn one that is undecided."""
    said = json.loads((WEIGHTS / "adder_resnet20.cifar10/results.json").read_text())
    result = validate("adder_resnet20.cifar10", cifar10, "--batch-size", "128")
    assert result["images"] == said["test_images"]
    assert abs(result["top1"] - said["test_accuracy"]) <= 0.03
    assert said["test_accuracy"] >= 89


@pytest.mark.slow
@torch.no_grad()
def test_reference_and_cpu_answer_alike(file, cifar10):
    """On all 10,000 images; where an answer differs, the two logits lie closer together than the two ways round."""
    paths = sorted((cifar10 / "test").glob("*/*.png"))
    labels = torch.tensor([sorted({p.parent.name for p in paths}).index(p.parent.name) for p in paths])
    networks = {impl: load_checkpoint(file, "adder_resnet20", dataset="cifar10") for impl in ("reference", "cpu")}
    right = dict.fromkeys(networks, 0)
    differing = []
    for start in range(0, len(paths), 100):
        x = preprocessed(paths[start : start + 100], networks["cpu"])
        logits = {}
        for impl, network in networks.items():
            for layer in network.modules():
                if isinstance(layer, Adder2d):
                    layer.impl = impl
            logits[impl] = network(x)
            right[impl] += int((logits[impl].argmax(1) == labels[start : start + 100]).sum())
        a, b = logits["reference"], logits["cpu"]
        for i in (a.argmax(1) != b.argmax(1)).nonzero().flatten().tolist():
            first, second = a[i].topk(2).values
            error = (a[i] - b[i]).abs().max()
            differing.append((paths[start + i].name, (first - second).item(), error.item()))
    print("images whose answer differs (name, margin, difference of logits):", differing)
    assert all(margin <= 2 * error for _, margin, error in differing)
    assert {impl: round(hits / 100, 2) for impl, hits in right.items()} == {"reference": ACCURACY, "cpu": ACCURACY}

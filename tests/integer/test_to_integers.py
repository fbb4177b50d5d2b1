"""``to_integers``: its integers against the equations, its answers against the network it was made of."""

import itertools

import integer_truth
import pytest
import timm
import torch
from integer_networks import MEAN, STD, float_network, integer_network, normalised, pixels
from timm.layers import BatchNormAct2d
from torch import nn

import adder_zoo
from adder_zoo.integer import fixed_point
from adder_zoo.integer.graph import NoIntegerForm
from adder_zoo.integer.steps import Weighted

CASES = [
    ("mixed", "adder", False),
    ("mixed", "adder", True),
    ("mixed", "conv", True),
    ("grouped", "adder", False),
    ("grouped", "conv", True),
    ("adder_resnet8", "adder", False),
    ("adder_resnet8", "conv", False),
]


@pytest.mark.parametrize(("name", "similarity", "multiplier_free"), CASES)
def test_integers_are_those_of_the_equations(name, similarity, multiplier_free):
    network, _, images = integer_network(name, similarity, multiplier_free)
    truth = integer_truth.activations(network, images[0].tolist())
    for plain in (False, True):
        found = network.activations(images[:1], plain=plain)
        assert list(found) == list(truth)
        for tensor, value in found.items():
            assert value[0].tolist() == truth[tensor], tensor


@pytest.mark.parametrize("similarity", ["adder", "conv"])
@pytest.mark.parametrize("name", ["mixed", "grouped", "adder_resnet8"])
def test_answers_are_those_of_the_network_it_was_made_of(name, similarity):
    network, small, images = integer_network(name, similarity)
    with torch.no_grad():
        wanted = small(normalised(images))
    got = network(images) * network.logit_step
    spread = (wanted - wanted.mean(0)).square().mean()
    assert (got - wanted).square().mean() < 0.01 * spread


def test_a_network_without_multiplications_has_sums_of_few_powers_of_two():
    network, _, _ = integer_network("adder_resnet8", multiplier_free=True)
    assert network.multiplier_free
    for step in network.steps:
        if isinstance(step, Weighted):
            values = step.requantize.multiplier.tolist()
            if step.kind == "product":
                values += step.weight.unique().tolist()
            assert all(len(fixed_point.signed_powers(value)) <= 2 for value in values)
        by = getattr(step, "rescale", None)
        assert by is None or len(fixed_point.signed_powers(by.multiplier)) <= fixed_point.TERMS_OF_A_TENSOR


def test_signed_powers_add_up_and_are_few():
    for value in range(-1000, 1001):
        terms = fixed_point.signed_powers(value)
        assert sum(sign * 2**exponent for sign, exponent in terms) == value
        assert all(a[1] - b[1] >= 2 for a, b in itertools.pairwise(terms))  # the non-adjacent form


@pytest.mark.parametrize("multiplier_free", [False, True])
def test_scales_fit_int32_for_every_sum(multiplier_free):
    scale = torch.tensor([1e-6, 3e-4, -0.02, 0.7, 30.0, 0.0], dtype=torch.float64)
    shift = torch.tensor([0.0, 90.0, -3000.0, 5.0, -100.0, 7.0], dtype=torch.float64)
    largest = torch.tensor([1_000_000, 146_880, 60_000, 255, 9, 0])
    by = fixed_point.requantize(scale, shift, largest, multiplier_free)
    for k in range(len(scale)):
        for a in (-int(largest[k]), 0, int(largest[k])):
            total = int(by.multiplier[k]) * a + int(by.offset[k])
            assert abs(int(by.multiplier[k]) * a) < 2**31
            assert abs(total) < 2**31
            error = abs((total >> int(by.shift[k])) - (float(scale[k]) * a + float(shift[k])))
            slack = 0.1 if multiplier_free else 2**-10
            assert error <= 0.51 + slack * abs(float(scale[k])) * abs(a) + abs(a) * 2.0**-24


def test_the_best_sum_of_two_powers_is_found():
    sums = {p + sign * q for p in (2**i for i in range(12)) for q in (2**i for i in range(12)) for sign in (1, -1)}
    for wanted in range(-1500, 1501):
        got = fixed_point._multiplier(float(wanted), True)
        assert abs(got - wanted) == min(abs(abs(wanted) - s) for s in sums | {0}), wanted


def test_networks_that_were_not_quantised_are_refused():
    model, images = float_network("adder_resnet8")
    with pytest.raises(NoIntegerForm, match=r"was not quantised.*adder_zoo.quantize"):
        adder_zoo.to_integers(model, images, mean=[MEAN], std=[STD])
    with pytest.raises(NoIntegerForm, match="was not quantised"):
        adder_zoo.to_integers(adder_zoo.fuse(model), images, mean=[MEAN], std=[STD])
    with pytest.raises(ValueError, match="training mode"):
        adder_zoo.to_integers(float_network("mixed", "conv")[0].train(), images)


class Dropped(nn.Module):
    def forward(self, x):
        return 0.5 * x


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Conv2d(3, 4, 3), nn.Sigmoid()], r"1 \(Sigmoid\)"),
        ([nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.LazyLinear(2)], r"1 \(AvgPool2d\)"),
        ([nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.LeakyReLU), nn.Conv2d(4, 2, 3)], r"1 \(LeakyReLU\)"),
        ([nn.Conv2d(3, 4, 3), BatchNormAct2d(4, drop_layer=Dropped), nn.Conv2d(4, 2, 3)], r"1 \(Dropped\)"),
        ([nn.Conv2d(3, 4, 3), nn.Hardtanh(0, 5), nn.Conv2d(4, 2, 3)], r"1 \(Hardtanh\)"),
        ([nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")], "padding_mode 'reflect'"),
        ([nn.ReLU(), nn.Conv2d(3, 4, 3)], r"0 \(ReLU\)"),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 2, 1)], "ceil_mode"),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)], "last step"),
    ],
)
def test_layers_without_an_integer_form_are_named(layers, named):
    model = nn.Sequential(*layers).eval()
    images = pixels(4, 3, 8, 8)
    model(normalised(images))
    with pytest.raises(NoIntegerForm, match=named):
        adder_zoo.to_integers(model, images, mean=[MEAN], std=[STD])


@pytest.mark.parametrize("change", ["hook", "forward", "bounds"])
def test_a_module_that_does_more_than_its_class_is_named(change):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.ReLU6), nn.Flatten(), nn.Linear(144, 2))
    module = model.eval()[1].act
    if change == "hook":
        module.register_forward_hook(lambda module, images, y: y * 2)
    elif change == "forward":
        module.forward = lambda x: x * 2
    else:
        module.max_val = 4.0
    with pytest.raises(NoIntegerForm, match=r"1 (has hooks or a forward of its own|is a ReLU6 from 0\.0 to 4\.0)"):
        adder_zoo.to_integers(model, pixels(4, 3, 8, 8), mean=[MEAN], std=[STD])


@pytest.mark.parametrize("flattened", [nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Sequential()])
def test_a_map_that_becomes_a_row_keeps_its_order(flattened):
    """A linear layer reads maps of several pixels as torch does, channels first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), flattened, Rows(), nn.Linear(4 * 5 * 4, 3)).eval()
    images = pixels(8, 3, 7, 6)
    with torch.no_grad():
        wanted = model(normalised(images))
    network = adder_zoo.to_integers(model, images, mean=[MEAN], std=[STD])
    got = network(images) * network.logit_step
    assert (got - wanted).square().mean() < 0.001 * (wanted - wanted.mean(0)).square().mean()


class Rows(nn.Module):
    def forward(self, x):
        return torch.flatten(x, 1)


class Part(nn.Module):
    """What changes the order, or takes a part."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    "part",
    [lambda x: x[:, :2], lambda x: x[1:], lambda x: x.reshape(-1, 2, 12, 6), lambda x: x.reshape(-1, 4, 6, 6).mT],
)
def test_parts_and_other_orders_are_refused(part):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Part(part), nn.LazyConv2d(2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(2, 2)).eval()
    images = pixels(4, 3, 8, 8)
    model(normalised(images))
    with pytest.raises(NoIntegerForm, match="has no integer form here"):
        adder_zoo.to_integers(model, images, mean=[MEAN], std=[STD])


def test_images_are_checked():
    network, small, images = integer_network("mixed")
    with pytest.raises(TypeError, match="uint8"):
        adder_zoo.to_integers(small, images.float())
    with pytest.raises(ValueError, match="at least one image"):
        adder_zoo.to_integers(small, images[:0])
    with pytest.raises(ValueError, match="give mean and std"):
        adder_zoo.to_integers(small, images)
    with pytest.raises(ValueError, match="mean has 2 values"):
        adder_zoo.to_integers(small, images, mean=[0.1, 0.2], std=[1.0])
    with pytest.raises(TypeError, match="uint8"):
        network(images.float())
    with pytest.raises(ValueError, match="images must be"):
        network(images[:, :8])
    assert network(images[:0]).shape == (0, 3)


def test_batches_answer_as_images_do():
    network, _, images = integer_network("mixed")
    together = network(images.repeat(5, 1, 1, 1))
    assert torch.equal(together, torch.cat([network(image[None]) for image in images]).repeat(5, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "count"),
    [("adder_lenet5_bn.mnist", "mnist", 10_000), ("adder_resnet20.cifar10", "cifar10", 10_000)],
)
@pytest.mark.parametrize("multiplier_free", [False, True])
def test_accuracy_is_that_of_int8(name, dataset, count, multiplier_free, data_dir):
    """Within 0.3 points of the network that ``quantize`` makes."""
    from integer_images import read

    calibration, _ = read(dataset, "train", data_dir, 512)
    images, labels = read(dataset, "test", data_dir, count)
    model = timm.create_model(name, pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def prepared(batch):
        return (batch.permute(0, 3, 1, 2) / 255 - mean) / std

    small = adder_zoo.quantize(model, prepared(calibration))
    network = adder_zoo.to_integers(small, calibration, multiplier_free=multiplier_free)
    with torch.no_grad():
        int8 = torch.cat([small(prepared(batch)).argmax(1) for batch in images.split(100)])
    whole = torch.cat([network(batch).argmax(1) for batch in images.split(100)])
    accuracies = [100 * float((answers == labels).float().mean()) for answers in (int8, whole)]
    assert accuracies[1] >= accuracies[0] - 0.3, accuracies

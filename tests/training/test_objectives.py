"""Knowledge transfer, held against its equations in float64."""

import imagenet
import mnist
import pytest
import timm
import torch
import torch.nn.functional as F
from recipe_runs import FEW, SMALL
from torch import nn

import adder_zoo
from adder_zoo import Adder2d
from adder_zoo.layers import AdderLayer
from adder_zoo.training import RecipeError, create_networks, parse_settings
from adder_zoo.training.evaluate import Evaluator
from adder_zoo.training.networks import name_classes, require_same_classes, trained_teacher
from adder_zoo.training.objectives import PKKD, Distilled, Supervised, exponent, set_exponent


class Net(nn.Module):
    def __init__(self, similarity):
        super().__init__()
        layer = Adder2d if similarity == "adder" else nn.Conv2d
        self.first = layer(2, 3, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.second = layer(3, 4, 1, bias=False)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    student, teacher = Net("adder").double(), Net("conv").double()
    images, labels = torch.randn(6, 2, 7, 7).double(), torch.tensor([0, 1, 2, 3, 4, 0])
    return student, teacher, images, labels


def patches(x, layer):
    """[N, taps, outputs]."""
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_answers_of_a_trained_teacher(parts, temperature):
    student, teacher, images, labels = parts
    objective = Distilled(student, teacher.eval(), 0.3, temperature).double().train()
    assert not teacher.training
    loss, logits = objective(images, labels)
    torch.testing.assert_close(logits, student(images))
    p = (teacher(images) / temperature).softmax(1)
    q = (logits / temperature).softmax(1)
    taught = -(p * q.log()).sum(1).mean() * temperature**2
    labelled = -logits.softmax(1)[range(6), labels].log().mean()
    torch.testing.assert_close(loss, 0.3 * labelled + 0.7 * taught)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


@pytest.fixture
def student():
    return timm.create_model("adder_lenet5_bn.mnist")


def saved(folder, **changes):
    """A folder as a run leaves it, of the convolutional twin."""
    torch.manual_seed(0)
    network = timm.create_model("adder_lenet5_bn.mnist", similarity="conv")
    network.pretrained_cfg = {**network.pretrained_cfg, **changes}
    adder_zoo.hub.save_pretrained(network, folder)
    return network.eval()


def test_teacher_gets_images_as_it_is_used_to(tmp_path, student):
    network = saved(tmp_path / "one", mean=(0.25,), std=(0.5,))
    images = torch.randn(3, 1, 32, 32)
    (mean,), (std,) = student.pretrained_cfg["mean"], student.pretrained_cfg["std"]
    wanted = network((images * std + mean - 0.25) / 0.5)
    teacher = trained_teacher(str(tmp_path / "one"), student)
    torch.testing.assert_close(teacher(images), wanted)
    network = saved(tmp_path / "two")
    torch.testing.assert_close(trained_teacher(str(tmp_path / "two"), student)(images), network(images))


def test_trained_adder_network_teaches(student):
    images = torch.randn(3, 1, 32, 32)
    network = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    torch.testing.assert_close(
        trained_teacher("adder_lenet5_bn.mnist", student)(images), network(images), rtol=1e-4, atol=1e-3
    )


def test_teachers_that_do_not_fit_are_refused(tmp_path, student):
    with pytest.raises(RecipeError, match="knows 1000 classes"):
        trained_teacher(str(many(tmp_path / "many")), student)
    with pytest.raises(RecipeError, match="--teacher nothing"):
        trained_teacher("nothing", student)
    with pytest.raises(RecipeError, match="--teacher"):
        trained_teacher(str(tmp_path), student)


def test_classes_are_compared_when_the_images_have_named_them(tmp_path):
    """A folder of photographs names the classes of a network that was created before, in an order of its own."""
    main = ["--model", "adder_resnet18", "--num-classes", "3", "--distillation", "trained"]
    teacher = timm.create_model("adder_resnet18", similarity="conv", num_classes=3)
    name_classes(teacher, {"cat": 0, "dog": 1, "tiger": 2})
    adder_zoo.hub.save_pretrained(teacher, tmp_path)
    model, teacher = imagenet.create(parse_settings(imagenet.Config, "", [*main, "--teacher", str(tmp_path)]))
    require_same_classes("x", teacher, model)  # names none yet
    name_classes(model, {"cat": 0, "dog": 1, "tiger": 2})
    require_same_classes("x", teacher, model)
    name_classes(model, {"dog": 0, "cat": 1, "tiger": 2})
    with pytest.raises(RecipeError, match="--teacher x has other classes, or the same in another order"):
        require_same_classes("x", teacher, model)


def test_a_run_with_a_teacher_of_other_classes_is_refused(tmp_path):
    flags = ["--distillation", "trained", "--teacher", "adder_lenet5_bn.mnist"]
    with pytest.raises(RecipeError, match="other classes"):
        mnist.main([*FEW, *flags, "--output-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "results.json").exists()


def many(folder):
    network = timm.create_model("adder_lenet5_bn.mnist", similarity="conv", num_classes=1000)
    adder_zoo.hub.save_pretrained(network, folder)
    return folder


def test_pkkd_is_its_equation(parts):
    student, teacher, images, labels = parts
    objective = PKKD(student, teacher, alpha=0.3, beta=2.0).double().train()
    seen = {}
    for name, net in (("student", student), ("teacher", teacher)):
        for layer in ("first", "second"):
            net.get_submodule(layer).register_forward_pre_hook(
                lambda m, args, key=(name, layer): seen.__setitem__(key, args[0].detach())
            )
    loss, logits = objective(images, labels)
    answers = teacher(images)

    between = 0
    for i, name in enumerate(("first", "second")):
        kernels = []
        for who, net, power in (("student", student, 1), ("teacher", teacher, 2)):
            layer = net.get_submodule(name)
            taps = patches(seen[who, name], layer)  # [N, T, L]
            w = layer.weight.flatten(1)  # [K, T]
            distance = (taps[:, None] - w[None, :, :, None]).abs().pow(power).sum(2)  # [N, K, L]
            kernels.append(torch.exp(-distance / distance.mean()))  # 2σ², in the first batch
        maps = []
        for kernel, (conv, _) in zip(kernels, (objective.student_maps[i], objective.teacher_maps[i]), strict=True):
            mapped = torch.einsum("nkl,ok->nol", kernel, conv.weight[:, :, 0, 0])
            mean = mapped.mean((0, 2), keepdim=True)
            maps.append((mapped - mean) / (mapped.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt())
        between = between + (maps[0] - maps[1]).square().mean()
    soft = -(answers.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    true = 2.0 * between + 0.3 * F.cross_entropy(logits, labels) + 0.7 * soft + F.cross_entropy(answers, labels)
    torch.testing.assert_close(loss, true)


def test_teacher_learns_from_its_labels_alone(parts):
    student, teacher, images, labels = parts
    PKKD(student, teacher, alpha=0.3, beta=2.0).double().train()(images, labels)[0].backward()
    taught = [p.grad.clone() for p in teacher.parameters()]
    teacher.zero_grad()
    F.cross_entropy(teacher(images), labels).backward()
    for grad, p in zip(taught, teacher.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad)


def test_student_learns_from_the_layers_too(parts):
    student, teacher, images, labels = parts
    PKKD(student, teacher, alpha=1.0, beta=1.0).double().train()(images, labels)[0].backward()
    both = student.first.weight.grad.clone()
    student.zero_grad()
    Supervised(student).train()(images, labels)[0].backward()
    assert not torch.allclose(both, student.first.weight.grad)


def test_pkkd_answers_with_the_student_and_needs_adder_layers(parts):
    student, teacher, images, _ = parts
    objective = PKKD(student, teacher, 0.5, 1.0).eval()
    assert torch.equal(objective(images), student(images))
    with pytest.raises(RecipeError, match="no adder layers"):
        PKKD(Net("conv"), Net("conv"), 0.5, 1.0)


def test_exponent_falls_from_2_to_1():
    model = timm.create_model("adder_lenet5_bn")
    assert [exponent(epoch, 5) for epoch in range(6)] == [2.0, 1.75, 1.5, 1.25, 1.0, 1.0]
    assert exponent(0, 0) == 1.0
    set_exponent(model, 1.75)
    assert {m.p for m in model.modules() if isinstance(m, AdderLayer)} == {1.75}
    x = torch.randn(2, 1, 32, 32)
    layer = model.get_submodule(next(n for n, m in model.named_modules() if isinstance(m, Adder2d)))
    want = adder_zoo.adder2d(x, layer.weight, None, layer.stride, layer.padding, p=1.75)
    assert torch.equal(layer(x), want)
    assert not torch.equal(layer(x), adder_zoo.adder2d(x, layer.weight, None, layer.stride, layer.padding))


def test_l2_to_l1_ends_as_an_adder_network(alone, tmp_path, monkeypatch):
    flags = [*SMALL, "--limit-batches", "2", "--batch-size", "16", "--epochs", "2", "--bn-batches", "1"]
    flags += ["--l2-to-l1", "2", "--model-ema", "--output-dir", str(tmp_path)]
    measured = []
    measure = Evaluator.__call__

    def look(self, model, *args, **kwargs):
        measured.append({m.p for m in model.modules() if isinstance(m, AdderLayer)})
        return measure(self, model, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "__call__", look)
    results = mnist.main(flags)
    assert measured == [{2.0}, {2.0}, {1.0}, {1.0}]  # the network and the average of its weights, of two epochs
    assert results["best_epoch"] == 2  # what was measured with another exponent is not what timm would build
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert {m.p for m in model.modules() if isinstance(m, AdderLayer)} == {1}


def test_twin_of_a_trained_network_begins_untrained():
    """The weights under the network's name are an adder network's: as a convolution's they would teach nonsense."""
    config = mnist.Config(pretrained=True, distillation="pkkd")
    student, teacher = create_networks(config, "adder_lenet5_bn.mnist")
    trained = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in student.state_dict().items())
    weights = [name for name, p in teacher.named_parameters() if p.dim() > 1]
    assert weights
    assert not any(torch.equal(teacher.state_dict()[name], trained[name]) for name in weights)

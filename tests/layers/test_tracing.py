"""Networks with adder layers in ``torch.fx``, what is built on it, and ``torch.jit.trace``."""

import pickle
import warnings

import pytest
import torch
from timm import create_model
from torch import fx, nn
from torch.overrides import TorchFunctionMode

import adder_zoo
from adder_zoo import Adder2d, AdderLinear, adder2d, convert_to_adder, functional, fuse
from adder_zoo.layers import Adder2dSame


class Calls(nn.Module):
    """The operator by each of its names."""

    def __init__(self):
        super().__init__()
        self.layer = Adder2d(3, 4, 3, padding="same", stride=1)
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.bias = nn.Parameter(torch.randn(4))
        self.linear = AdderLinear(4, 5)

    def forward(self, x):
        y = adder2d(self.layer(x), self.weight, self.bias, stride=2)
        y = functional.adder2d(y, weight=self.weight, padding=(1, 0))
        y = adder_zoo.adder2d(x=y, weight=self.weight, p=2)
        return self.linear(y.mean((2, 3)))


NETWORKS = {
    "calls": Calls,
    "reflect": lambda: Adder2d(3, 4, 3, 2, padding=1, padding_mode="reflect", weight_grad="sign"),
    "same by size": lambda: Adder2dSame(3, 4, 3, 2),
    "linear": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), AdderLinear(3, 5, bias=False)),
    "lenet": lambda: nn.Sequential(Adder2d(3, 1, 1), nn.Upsample((32, 32)), create_model("adder_lenet5_bn").eval()),
    "fused": lambda: fuse(nn.Sequential(Adder2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def gradients(network, x):
    parameters = [p for p in network.parameters() if p.requires_grad]
    return torch.autograd.grad(network(x).square().sum(), parameters) if parameters else ()


def test_symbolic_trace(network):
    graph = fx.symbolic_trace(network)
    called = [n.target.__name__ for n in graph.graph.nodes if n.op == "call_function"]
    assert any(name.startswith("adder") for name in called)
    for other in (graph, pickle.loads(pickle.dumps(graph))):
        for size in ((2, 3, 8, 8), (3, 3, 7, 10)):  # the graph holds for other sizes
            x = torch.randn(size)
            assert torch.equal(other(x), network(x))
            for a, b in zip(gradients(other, x), gradients(network, x), strict=True):
                assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"adder|takes images"):
        graph(torch.randn(1, 2, 8, 8))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_jit_trace_with_gradients_on(network, tmp_path):
    """Traced twice and compared, as torch does by default; a warning would say that the two differ."""
    x = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not isinstance(network, Adder2dSame):  # timm's padding computes with the sizes
            warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, x)
    torch.jit.save(traced, tmp_path / "net.pt")
    for other in (traced, torch.jit.load(tmp_path / "net.pt")):
        for batch in (x, torch.randn(5, 3, 8, 8)):
            assert torch.equal(other(batch), network(batch))
    with torch.no_grad():
        assert torch.equal(traced(x), network(x))
    assert len(gradients(traced, x)) == len(gradients(network, x))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_graph_in_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(create_model("adder_resnet20"), torch.randn(2, 3, 8, 8))
    (file,) = tmp_path.iterdir()
    assert b"adder_zoo::adder2d" in file.read_bytes()


def test_features_by_torchvision():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = convert_to_adder(create_model("resnet10t", num_classes=3)).eval()
    seen = []
    features = extraction.create_feature_extractor(model, {"layer2": "second", "fc": "logits"})
    x = torch.randn(2, 3, 32, 32)
    model.layer2.register_forward_hook(lambda module, args, out: seen.append(out))
    wanted = model(x)
    found = features(x)
    assert torch.equal(found["second"], seen[0])
    assert torch.equal(found["logits"], wanted)


@pytest.mark.filterwarnings("ignore")
def test_quantisation_leaves_adder_layers_as_they_are():
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    layers = nn.Conv2d(3, 4, 1), Adder2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), AdderLinear(180, 3)
    model = nn.Sequential(*layers).eval()
    x = torch.randn(2, 3, 8, 8)
    prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping(), (x,))
    torch.testing.assert_close(prepared(x), model(x))
    graph = quantize_fx.convert_fx(prepared).graph
    names = {getattr(n.target, "__name__", "") for n in graph.nodes}
    assert {"adder2d", "adder_linear"} <= names


def test_tensors_of_a_class_of_their_own():
    class Marked(torch.Tensor):
        pass

    x, weight = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    y = adder2d(x.as_subclass(Marked), weight)
    assert type(y) is Marked
    assert torch.equal(y.as_subclass(torch.Tensor), adder2d(x, weight))

    class Log(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    names, weight = [], torch.randn(2, 6)
    with Log():
        functional.adder_linear(x, weight)
    assert names[0] == "adder_linear"


def test_compiled_layers():
    torch._dynamo.reset()
    network = nn.Sequential(Adder2dSame(3, 4, 3, 2), Adder2d(4, 4, 3, padding="same"), nn.Flatten(), AdderLinear(64, 2))
    x = torch.randn(2, 3, 7, 8)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize(
    ("x", "weight", "words"),
    [((2, 5), (4, 6), "expects 6 features"), ((2, 6), (4, 6, 1), "2 dimensions"), ((), (4, 6), "expects 6 features")],
)
def test_linear_refuses_what_does_not_fit(x, weight, words):
    with pytest.raises(ValueError, match=words):
        functional.adder_linear(torch.randn(x), torch.randn(weight))

"""A network in bytes is saved and comes back bit by bit; what is of another kind is refused."""

import copy
import json
import pickle
import subprocess

import preloaded
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

import adder_zoo
from adder_zoo.int8.layers import QuantizedAdder2d
from adder_zoo.int8.network import QuantizedNetwork

pytestmark = pytest.mark.filterwarnings(
    "ignore:quantize. these adder layers stay float32", "ignore:quantize. on calibration images"
)
X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def settled(model):
    """In eval mode, with batch norm that knows the outputs of its layers."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    with adder_zoo.reestimated_batch_norm(model, [X]):
        return copy.deepcopy(model).eval()


def small(name="adder_resnet20", **options):
    torch.manual_seed(0)
    options = {"depth": 8} if name == "adder_resnet20" else {"num_classes": 5, **options}
    return settled(timm.create_model(name, **options))


@pytest.fixture(scope="module")
def network():
    return adder_zoo.quantize(small(), X)


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    return adder_zoo.save_pretrained(network, tmp_path_factory.mktemp("saved"))


@torch.no_grad()
def answers(model, x=X):
    return model(x)


def load(folder, **options):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


MAKE = {
    "the zoo's": small,
    "all adder layers": lambda: timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval(),
    "converted": lambda: settled(adder_zoo.convert_to_adder(timm.create_model("resnet18", num_classes=5))),
    "dilated": lambda: small("adder_resnet18", output_stride=8),
    "depthwise": lambda: small("adder_mobilenetv2_050"),
    "SAME padding": lambda: small("adder_tf_efficientnet_b0"),
    "concatenated": lambda: small("adder_dla34"),
}


LARGE = ("depthwise", "SAME padding", "concatenated")
CASES = [
    *(pytest.param(what, 8, marks=[pytest.mark.slow] if what in LARGE else []) for what in MAKE),
    ("the zoo's", 4),
    ("all adder layers", 5),
]


@pytest.mark.parametrize(("what", "bits"), CASES)
def test_it_comes_back_bit_by_bit(tmp_path, what, bits):
    model = MAKE[what]()
    x = torch.rand(8, 1, 32, 32) if what == "all adder layers" else X
    network = adder_zoo.quantize(model, x, bits=bits)
    again = load(adder_zoo.save_pretrained(network, tmp_path))
    assert torch.equal(answers(again, x), answers(network, x))
    assert not any(module.training for module in again.modules())
    state, wanted = again.state_dict(), network.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert again.quantized_from == network.quantized_from


def test_it_comes_back_in_a_new_process(tmp_path):
    """A network of adder layers alone: a float convolution may round otherwise in another process."""
    network, images = adder_zoo.quantize(MAKE["all adder layers"](), torch.rand(8, 1, 32, 32)), torch.rand(8, 1, 32, 32)
    saved = adder_zoo.save_pretrained(network, tmp_path / "saved")
    torch.save((images, answers(network, images)), tmp_path / "wanted.pt")
    program = f"""
import adder_zoo, timm, torch
x, wanted = torch.load({str(tmp_path / "wanted.pt")!r})
with torch.no_grad():
    assert torch.equal(timm.create_model("local-dir:{saved}", pretrained=True)(x), wanted)
"""
    subprocess.run([*preloaded.python(), "-c", program], check=True)


def test_what_is_written(network, saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["architecture"] == "adder_resnet20"
    assert config["pretrained_cfg"]["tag"] == "cifar10_int8"
    said = config["model_args"]["int8"]
    assert (said["bits"], said["quantized_from"]) == (8, "adder_resnet20.cifar10")
    assert said["layers"]["layer1.0.conv1"]["writes"] == "uint8"
    assert said["layers"]["layer1.0.conv2"]["reads"] == "uint8"
    tensors = load_file(saved / "model.safetensors")
    for name in said["layers"]:
        assert tensors[f"{name}.weight"].dtype == torch.uint8
    assert list(saved.iterdir()) != []
    assert not list(saved.glob("*.pkl")) + list(saved.glob("*.py"))


def test_the_file_is_a_quarter_of_the_float_file(tmp_path):
    model = settled(timm.create_model("adder_resnet20"))
    floats = adder_zoo.save_pretrained(model, tmp_path / "float")
    in_bytes = adder_zoo.save_pretrained(adder_zoo.quantize(model, X), tmp_path / "bytes")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (floats, in_bytes)]
    assert sizes[1] <= 0.27 * sizes[0]


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "DataParallel": nn.DataParallel,
    "compile": lambda network: torch.compile(network, backend="eager"),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_answer_alike_and_save_alike(network, saved, tmp_path, how):
    made = COPIES[how](network)
    assert torch.equal(answers(made), answers(network))
    adder_zoo.save_pretrained(made, tmp_path)
    assert files(tmp_path) == files(saved)


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle"])
def test_copies_keep_what_timm_reads(network, how):
    made = COPIES[how](network)
    assert isinstance(made, QuantizedNetwork)
    assert made.num_classes == 10
    assert made.pretrained_cfg == network.pretrained_cfg
    assert timm.data.resolve_data_config(model=made) == timm.data.resolve_data_config(model=network)


def test_what_was_loaded_saves_alike(saved, tmp_path):
    adder_zoo.save_pretrained(load(saved), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, saved)]
    assert configs[0] == configs[1]


def test_timm_saves_it_too(network, tmp_path):
    if not hasattr(timm.models, "get_model_args"):
        pytest.skip("this timm records no arguments")
    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # timm saves no other
    save_for_hf(contiguous, str(tmp_path), safe_serialization=True)
    assert torch.equal(answers(load(tmp_path)), answers(network))


def test_on_meta_and_without_weights(saved):
    with torch.device("meta"):
        network = timm.create_model(f"local-dir:{saved}")
    assert any(isinstance(module, QuantizedAdder2d) for module in network.modules())
    assert answers(timm.create_model(f"local-dir:{saved}")).shape == (8, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision(network, saved, dtype):
    wanted = answers(copy.deepcopy(network).to(dtype), X.to(dtype))
    assert torch.equal(answers(load(saved, dtype=dtype), X.to(dtype)), wanted)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, "num_classes of a network in bytes stays what it is, 10, and cannot be 5"),
        ({"num_classes": 0}, "num_classes of a network in bytes stays what it is, 10, and cannot be 0"),
        ({"in_chans": 1}, "in_chans of a network in bytes stays what it is, 3, and cannot be 1"),
        ({"features_only": True}, "features_only needs the float network"),
        ({"similarity": "conv"}, "not those of similarity='conv'"),
        ({"int8": True}, r"int8=True does not describe a network in bytes.*adder_zoo.quantize"),
    ],
)
def test_other_arguments(saved, options, message):
    with pytest.raises(ValueError, match=message):
        load(saved, **options)


def test_float_weights_in_a_network_of_bytes(network, saved, tmp_path):
    model = small()
    with pytest.raises(RuntimeError, match=r"what is loaded are float filters.*adder_zoo.quantize\(\)"):
        copy.deepcopy(network).load_state_dict(model.state_dict(), strict=False)
    adder_zoo.save_pretrained(model, tmp_path)
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(RuntimeError, match=r"holds a network in float32, and one in bytes was asked for"):
        load(tmp_path)
    with pytest.raises(RuntimeError, match=r"what is loaded are float filters"):
        load(saved, checkpoint_path=str(tmp_path / "model.safetensors"))


def test_bytes_in_a_float_network(network, saved, tmp_path):
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"what is loaded are the bytes of a quantised network"):
        model.load_state_dict(network.state_dict(), strict=False)
    adders = [name for name, module in model.named_modules() if isinstance(module, adder_zoo.Adder2d)]
    assert all(torch.equal(model.state_dict()[f"{name}.weight"], before[f"{name}.weight"]) for name in adders)
    adder_zoo.save_pretrained(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(RuntimeError, match=r"holds a network in bytes, and adder_resnet20 was asked for in float32"):
        load(tmp_path)
    with pytest.raises(RuntimeError, match="what is loaded are the bytes"):
        timm.create_model("adder_resnet20", depth=8, checkpoint_path=str(saved / "model.safetensors"))
    overlay = {"file": str(saved / "model.safetensors")}
    with pytest.raises(RuntimeError, match="holds a network in bytes"):
        timm.create_model("adder_resnet20", depth=8, pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.pop("layer1.0.conv1"),
        lambda layers: layers.update(other=layers["layer1.0.conv1"]),
        lambda layers: layers["layer1.0.conv1"].update(step=0),
        lambda layers: layers["layer1.0.conv1"].update(step=float("nan")),
        lambda layers: layers["layer1.0.conv1"].update(zero_point=256),
        lambda layers: layers["layer1.0.conv1"].update(zero_point=1.5),
        lambda layers: layers["layer1.0.conv1"].update(bits=9),
        lambda layers: layers["layer1.0.conv1"].update(writes="float32"),
        lambda layers: layers["layer1.0.conv1"].pop("step"),
        lambda layers: layers.update({"layer1.0.conv1": None}),
        lambda layers: layers.clear(),
    ],
)
def test_a_damaged_description(saved, tmp_path, change):
    for name, content in files(saved).items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["model_args"]["int8"]["layers"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, RuntimeError), match=r"config.json|those of another model"):
        load(tmp_path)


def test_bits_other_than_the_tag_says(network, saved, tmp_path):
    made = copy.deepcopy(network)
    made.pretrained_cfg = {**made.pretrained_cfg, "tag": "cifar10_int4"}
    with pytest.raises(ValueError, match="the tag 'cifar10_int4' says 4 bits, and the network has 8"):
        adder_zoo.save_pretrained(made, tmp_path)
    for name, content in files(saved).items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    for part, key, value in (("pretrained_cfg", "tag", "cifar10_int4"), ("int8", "bits", 4), ("int8", "bits", [4, 8])):
        changed = copy.deepcopy(config)
        (changed["model_args"] if part == "int8" else changed)[part][key] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"says .*4.* bits"):
            load(tmp_path)


def test_weights_of_another_network(saved, tmp_path):
    adder_zoo.save_pretrained(adder_zoo.quantize(small("adder_resnet18"), X), tmp_path)
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(RuntimeError, match="are those of another model"):
        load(tmp_path)


def test_damaged_weights(saved, tmp_path):
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="are damaged"):
        load(tmp_path)


def test_a_network_that_timm_cannot_build_again(network, tmp_path):
    model = settled(adder_zoo.convert_to_adder(timm.create_model("resnet10t", num_classes=5)))
    with pytest.raises(ValueError, match=r"timm cannot build this network again"):
        adder_zoo.save_pretrained(adder_zoo.quantize(model, X), tmp_path)
    changed = copy.deepcopy(network)
    changed.get_submodule("layer1.0.conv1").relu = False
    with pytest.raises(ValueError, match=r"layer1.0.conv1: relu False here"):
        adder_zoo.save_pretrained(changed, tmp_path)
    mine = nn.Sequential(adder_zoo.Adder2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match=r"was not built by timm.create_model"):
        adder_zoo.save_pretrained(adder_zoo.quantize(mine, X), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_whole_and_for_inference(network):
    for name in ("forward_features", "reset_classifier", "get_classifier", "forward_intermediates"):
        assert not hasattr(network, name)
    with pytest.raises(AttributeError, match="a quantised network has no reset_classifier: it goes from images"):
        network.reset_classifier(5)
    with pytest.raises(RuntimeError, match="was quantised for inference and cannot be trained"):
        network.train()
    assert not any(module.training for module in network.modules())
    with pytest.raises(RuntimeError, match="does not require grad"):
        network(X).sum().backward()

"""``adder-zoo`` as a user types it: answers, formats, bad input, exit codes."""

import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from mnist import SAMPLE
from PIL import Image
from timm.data import ImageDataset, create_loader, resolve_data_config

from adder_zoo import Adder2d, AdderLinear
from adder_zoo.cli import main
from adder_zoo.datasets.idx import load
from adder_zoo.hub import save_pretrained

FASHION = "adder_lenet5_bn.fashion_mnist"


def run(*args, code=0, stdin=None):
    result = CliRunner().invoke(main, [str(a) for a in args], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """The first 40 test images of the bundled sample as <class>/<number>.png, and their labels."""
    images, labels = load("fashion_mnist", SAMPLE)[0]["test"]
    root = tmp_path_factory.mktemp("clothes")
    for i in range(40):
        folder = root / f"{labels[i]}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(images[i].numpy()).save(folder / f"{i:02}.png")
    for label in range(10):
        (root / str(label)).mkdir(exist_ok=True)
    return root


@pytest.fixture
def photographs(data_dir):
    folder = data_dir / "imagenet_sample"
    if not folder.is_dir():
        pytest.skip("needs photographs, imagenet_sample/ in ADDER_ZOO_DATA")
    return folder


# ---- list, info, help


def test_list():
    rows = json.loads(run("list", "--pretrained", "--json").stdout)
    assert {r["model"] for r in rows} == set(timm.list_pretrained("adder_*"))
    assert all(r["weights"] == "package" and r["accuracy"] > 80 for r in rows)
    everything = json.loads(run("list", "--json").stdout)
    assert {r["model"] for r in everything} == set(timm.list_models("adder_*", include_tags=True))
    for row in everything:
        assert row["parameters"] > 0
        assert row["additions"] > 0
    table = run("list", "resnet20").stdout
    assert "adder_resnet20.cifar10" in table
    assert "resnet50" not in table
    run("list", "nothing_like_it", code=1)


def test_pretrained_never_lies():
    for name in timm.list_pretrained("adder_*"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"adder_vgg_small.cifar10 has no weights.*recipe.*import.*local-dir"):
        timm.create_model("adder_vgg_small", pretrained=True)


def test_info():
    told = json.loads(run("info", FASHION, "--json").stdout)
    assert told["counts"]["total"]["additions"] == 839_558
    assert told["results"]["test_accuracy"] > 90
    assert "839,558" in run("info", FASHION).stdout
    told = json.loads(run("info", "adder_resnet18", "--image-size", 64, "--similarity", "conv", "--json").stdout)
    assert told["counts"]["layers"][0]["input_shape"] == [1, 3, 64, 64]
    assert told["counts"]["without_norm"]["multiplications"] > 1e8


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adder_resnet5", "Did you mean adder_resnet"),
        ("adder_resnet20.imagenet", "only cifar10, cifar10_int8, cifar100"),
        ("qqqqqqqq", "`adder-zoo list` shows"),
    ],
)
def test_unknown_models(name, hint):
    assert hint in run("info", name, code=2).stderr


def test_every_command_has_help_with_examples():
    for name in main.commands:
        text = run(name, "--help").stdout
        assert f"adder-zoo {name}" in text, name
        assert "Examples:" in text, name


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "adder_zoo", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("adder-zoo")


# ---- predict


def test_predict_gives_what_the_network_gives(clothes):
    found = json.loads(run("predict", FASHION, clothes, "--top-k", 3, "--batch-size", 8, "--json").stdout)
    assert len(found) == 40
    model = timm.create_model(FASHION, pretrained=True).eval()
    config = resolve_data_config(model=model)
    data = ImageDataset(str(clothes), input_img_mode="L")
    config["batch_size"] = 8
    batches = create_loader(data, **config, use_prefetcher=False, num_workers=0, persistent_workers=False)
    images = torch.cat([x for x, _ in batches])
    order = {str(clothes / data.filename(i, basename=False)): x for i, x in enumerate(images)}
    assert len(order) == 40
    # The same images to a batch, or a tile of them could be rounded otherwise.
    images = torch.stack([order[answer["image"]] for answer in found])
    with torch.no_grad():
        probabilities = torch.cat([model(x) for x in images.split(8)]).softmax(1)
    for answer, expected in zip(found, probabilities, strict=True):
        best, which = expected.topk(3)
        assert [p["class"] for p in answer["predictions"]] == which.tolist()
        assert [p["probability"] for p in answer["predictions"]] == pytest.approx(best.tolist(), abs=1e-6)  # 6 digits
        assert answer["predictions"][0]["label"] == model.pretrained_cfg["label_names"][which[0]]


def test_predict_formats(clothes):
    files = sorted(clothes.rglob("*.png"))[:2]
    rows = list(csv.DictReader(io.StringIO(run("predict", FASHION, *files, "--format", "csv", "--top-k", 2).stdout)))
    assert [r["rank"] for r in rows] == ["1", "2", "1", "2"]
    assert [r["image"] for r in rows[::2]] == list(map(str, files))
    lines = run("predict", FASHION, "-", stdin="\n".join(map(str, files)) + "\n").stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == list(map(str, files))


def test_predict_takes_any_image(tmp_path):
    """The same grey picture as colour, CMYK, palette, with transparency, 16 bits deep, animated: one answer."""
    grey = load("fashion_mnist", SAMPLE)[0]["test"][0][3].numpy()
    image = Image.fromarray(grey)
    image.save(tmp_path / "grey.png")
    image.convert("RGB").save(tmp_path / "colour.png")
    image.convert("RGBA").save(tmp_path / "transparent.png")
    image.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("L", image.size)])
    Image.merge("CMYK", [Image.new("L", image.size)] * 3 + [Image.fromarray(255 - grey)]).save(tmp_path / "cmyk.tiff")
    answers = json.loads(run("predict", FASHION, tmp_path, "--json").stdout)
    assert len(answers) == 7
    assert {tuple(p["class"] for p in a["predictions"][:1]) for a in answers} == {
        (answers[0]["predictions"][0]["class"],)
    }
    exact = {a["image"].rpartition("/")[2]: a["predictions"] for a in answers}
    for name in ("colour.png", "transparent.png", "palette.png", "deep.png", "moving.gif", "cmyk.tiff"):
        assert exact[name] == exact["grey.png"], name


def test_predict_goes_on_past_bad_files(clothes, tmp_path):
    good = tmp_path / "a.png"
    good.write_bytes(next(clothes.rglob("*.png")).read_bytes())
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "no.jpg").write_text("not an image")
    (tmp_path / "notes.txt").write_text("not an image")
    result = run("predict", FASHION, tmp_path, tmp_path / "missing.png", "--json", code=1)
    assert [a["image"] for a in json.loads(result.stdout)] == [str(good)]
    assert "skipped 1 file(s)" in result.stderr
    assert "notes.txt" in result.stderr
    for name in ("cut.png", "no.jpg", "missing.png"):
        assert f"{tmp_path / name}" in result.stderr, name
    assert "3 of 4 images could not be read" in result.stderr


def test_predict_refuses(clothes, tmp_path):
    assert "no weights" in run("predict", "adder_vgg_small", clothes, code=1).stderr
    (tmp_path / "empty").mkdir()
    assert "there is no image" in run("predict", FASHION, tmp_path / "empty", code=1).stderr
    (tmp_path / "map.txt").write_text("one\ntwo\n")
    refused = run("predict", FASHION, clothes, "--class-map", tmp_path / "map.txt", code=1)
    assert "names 2 classes, and the network has 10" in refused.stderr
    assert "no config.json" in run("predict", tmp_path / "empty", clothes, code=2).stderr


def test_class_map_names_the_answers(clothes, tmp_path):
    (tmp_path / "map.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    args = ("predict", FASHION, next(clothes.rglob("*.png")), "--class-map", tmp_path / "map.txt", "--json")
    (answer,) = json.loads(run(*args).stdout)
    assert all(p["label"] == f"class {p['class']}" for p in answer["predictions"])


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_photographs_like_timms_own_loader(photographs, tmp_path, count):
    """Some, or all 100, through ``adder_resnet50`` with random weights, in batches."""
    files = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    for path in files[:: len(files) // count]:
        place = tmp_path / path.relative_to(photographs)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    photographs = tmp_path
    torch.manual_seed(3)
    found = json.loads(
        run("predict", "adder_resnet50", photographs, "--random-weights", "--json", "--batch-size", 8).stdout
    )
    torch.manual_seed(3)
    model = timm.create_model("adder_resnet50").eval().to(memory_format=torch.channels_last)
    data = ImageDataset(str(photographs))
    config = {**resolve_data_config(model=model), "batch_size": 8}
    batches = create_loader(data, **config, use_prefetcher=False, num_workers=0, persistent_workers=False)
    with torch.no_grad():
        probabilities = torch.cat([model(x.to(memory_format=torch.channels_last)) for x, _ in batches]).softmax(1)
    assert len(found) == len(probabilities) == count
    for i, p in enumerate(probabilities):
        answer = next(a for a in found if a["image"].endswith(data.filename(i)))
        best, which = p.topk(5)
        assert [x["class"] for x in answer["predictions"]] == which.tolist()
        assert [x["probability"] for x in answer["predictions"]] == pytest.approx(best.tolist(), abs=1e-5)


# ---- validate


def test_validate_counts_right_answers(clothes):
    (clothes / "3" / "readme.txt").write_text("x")
    try:
        result = run("validate", FASHION, "--data-dir", clothes, "--json", "--batch-size", 16)
    finally:
        (clothes / "3" / "readme.txt").unlink()
    told = json.loads(result.stdout)
    assert "skipped 1 file(s)" in result.stderr
    answers = json.loads(run("predict", FASHION, clothes, "--json").stdout)
    truth = [int(a["image"].split("/")[-2]) for a in answers]
    right = sum(a["predictions"][0]["class"] == t for a, t in zip(answers, truth, strict=True))
    five = sum(t in [p["class"] for p in a["predictions"]] for a, t in zip(answers, truth, strict=True))
    assert (told["images"], told["unreadable"]) == (40, 0)
    assert (told["top1"], told["top5"]) == (100 * right / 40, 100 * five / 40)
    assert told["images_per_second"] > 0
    whole = json.loads(run("validate", FASHION, "--dataset", "fashion_mnist", "--data-dir", SAMPLE, "--json").stdout)
    assert whole["images"] == 1000
    assert whole["top1"] == 90.2


def test_implementations_agree(clothes):
    tops = [
        json.loads(run("validate", FASHION, "--data-dir", clothes, "--impl", impl, "--json").stdout)["top1"]
        for impl in ("reference", "cpu")
    ]
    assert tops[0] == tops[1]


def test_validate_refuses(clothes, tmp_path):
    (tmp_path / "one").mkdir()
    refused = run("validate", FASHION, "--data-dir", tmp_path, code=1)
    assert "1 folders and the network has 10 classes" in refused.stderr
    assert "--class-map" in refused.stderr
    assert "give --data-dir" in run("validate", FASHION, code=2).stderr
    assert "no mnist found" in run("validate", FASHION, "--dataset", "mnist", "--data-dir", tmp_path, code=1).stderr


def test_synsets_are_matched_to_imagenets_classes(photographs):
    torch.manual_seed(0)
    told = json.loads(
        run("validate", "adder_mobilenetv3_small_050", "--data-dir", photographs, "--random-weights", "--json").stdout
    )
    assert told["images"] == 100


# ---- import, convert, export, bench


def test_import_says_what_it_made(tmp_path):
    torch.save(timm.create_model("adder_resnet20", num_classes=100).state_dict(), tmp_path / "x.pth")
    told = json.loads(
        run("import", tmp_path / "x.pth", "--model", "adder_resnet20", "-o", tmp_path / "out", "--json").stdout
    )
    assert (told["model"], told["num_classes"], told["in_chans"]) == ("adder_resnet20", 100, 3)
    again = run("import", tmp_path / "x.pth", "--model", "adder_resnet20", "-o", tmp_path / "out", code=1)
    assert "--force" in again.stderr
    other = run("import", tmp_path / "x.pth", "--model", "adder_resnet32", "-o", tmp_path / "b", code=1)
    assert "missing" in other.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("keep", [True, False])
def test_convert(tmp_path, keep):
    source = timm.create_model("resnet18", num_classes=5)
    save_pretrained(source, tmp_path / "cnn")
    run("convert", tmp_path / "cnn", "-o", tmp_path / "out", *["--keep-weights"] * keep)
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert network.num_classes == 5
    for name, module in network.named_modules():
        if isinstance(module, Adder2d):
            assert torch.equal(module.weight, source.get_submodule(name).weight) == keep
    assert torch.equal(network.conv1.weight, source.conv1.weight)
    assert torch.equal(network.fc.weight, source.fc.weight)
    assert "--force" in run("convert", tmp_path / "cnn", "-o", tmp_path / "out", code=1).stderr


def test_convert_refuses(tmp_path):
    assert "already" in run("convert", "adder_resnet20", "-o", tmp_path / "x", code=1).stderr
    assert "adder_zoo.convert_to_adder(timm.create_model('test_convnext'))" in run(
        "convert", "test_convnext", "-o", tmp_path / "x", code=1
    ).stderr.replace("\n", " ")


def test_export_is_for_inference(tmp_path, monkeypatch):
    recorded, export = [], torch.export.export

    def recording(*args, **kwargs):
        recorded.append(torch.is_grad_enabled())
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", recording)
    run("export", FASHION, "-o", tmp_path / "x.pt2", "--fixed-batch", "1")
    assert recorded == [False]


def test_export(tmp_path):
    told = json.loads(run("export", FASHION, "-o", tmp_path / "x.pt2", "--json").stdout)
    assert told["input_size"] == [1, 32, 32]
    program = torch.export.load(tmp_path / "x.pt2").module()
    model = timm.create_model(FASHION, pretrained=True).eval()
    assert not any(isinstance(m, (Adder2d, AdderLinear)) and m.training for m in model.modules())
    for n in (1, 7):
        x = torch.randn(n, 1, 32, 32)
        torch.testing.assert_close(program(x), model(x))
    assert ".pt2" in run("export", FASHION, "-o", tmp_path / "x.bin", code=2).stderr
    assert "no weights" in run("export", "adder_vgg_small", "-o", tmp_path / "y.pt2", code=1).stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pt2"]


@pytest.mark.parametrize("options", [(), ("--train",)])
def test_bench(options):
    told = json.loads(run("bench", FASHION, "--batch-size", 8, "--repeat", 1, "--json", *options).stdout)
    rates = told["images_per_second"]
    assert told["speed_against_twin"] == pytest.approx(rates["adder"] / rates["conv"], rel=2e-3)  # four digits each
    assert "no convolutional form" in run("bench", "resnet18", code=1).stderr


# ---- what users get wrong: a line that says so, and not a traceback


def damaged(tmp_path, name="net", **changes):
    """A folder of a network whose pretrained_cfg is changed, or the top of config.json by names with "top_"."""
    folder = tmp_path / name
    save_pretrained(timm.create_model("adder_lenet5_bn", pretrained=True), folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        target = config if key.startswith("top_") else config["pretrained_cfg"]
        if value is None:
            del target[key.removeprefix("top_")]
        else:
            target[key.removeprefix("top_")] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_architecture": None}, r"config.json is damaged \(KeyError\('architecture'\)\)"),
        ({"top_architecture": 3}, "config.json is damaged"),
        ({"top_model_args": [1]}, "config.json is damaged"),
        ({"mean": "x"}, "no valid mean"),
        ({"mean": None}, "no valid mean"),
        ({"std": [0]}, "no valid std"),
        ({"interpolation": "round"}, "no valid interpolation"),
        ({"label_names": 5}, "no valid label_names"),
        ({"crop_pct": "all"}, "no valid crop_pct"),
    ],
)
def test_damaged_configurations(tmp_path, changes, message):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    folder = damaged(tmp_path, **changes)
    for command in (["info"], ["predict", tmp_path / "a.png"]):
        refused = run(command[0], folder, *command[1:], code=1)
        assert re.search(message, refused.stderr), refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\xff\x00\x80", b"[1]", b"null"])
def test_configurations_that_are_none(tmp_path, content):
    folder = damaged(tmp_path)
    (folder / "config.json").write_bytes(content)
    assert "cannot be built" in run("info", folder, code=1).stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "gpu", "meta", "hpu", "cuda:-1"])
def test_devices_that_are_not_there(tmp_path, device):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    for args in (["bench", FASHION, "--batch-size", 1], ["predict", FASHION, tmp_path / "a.png"]):
        assert f"--device {device}" in run(*args, "--device", device, code=1).stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["import", "x.pth", "--model", "resnet18", "-o", "o"], 2, "Give adder_resnet18; with --similarity conv"),
        (["import", "x.pth", "--model", "local-dir:x", "-o", "o"], 2, "is not the name of a network"),
        (["import", "x.pth", "--model", "adder_resnet20.", "-o", "o"], 2, "a tag must follow the dot"),
        (["import", "x.pth", "--model", "adder_lenet5_bn", "-o", "x.pth/o"], 1, "Error: "),
        (["bench", FASHION, "--batch-size", 10**11], 1, "too large for the memory"),
        (["bench", FASHION, "--threads", 10**11], 2, "--threads"),
        (["info", FASHION, "--image-size", 64], 1, "cannot be counted for these images"),
        (["info", "adder_resnet18", "--image-size", 10**9], 1, "cannot be counted for these images"),
        (["predict", FASHION, "a.png", "--class-map", "utf16.txt"], 1, "not text in UTF-8"),
        (["validate", FASHION, "--data-dir", ".", "--class-map", "utf16.txt"], 1, "not text in UTF-8"),
        (["import", "page.pth", "--model", "adder_lenet5_bn", "-o", "o"], 1, "but a web page; fetch it again"),
        (["import", "lfs.pth", "--model", "adder_lenet5_bn", "-o", "o"], 1, "git lfs pull"),
        (["import", "f8.pth", "--model", "adder_lenet5_bn", "-o", "o"], 1, "stages.0.conv.weight (float8_e4m3fn)"),
        (["import", "sparse.pth", "--model", "adder_lenet5_bn", "-o", "o"], 1, "(float32, sparse)"),
        (["import", "whole.pth", "--model", "adder_lenet5_bn", "-o", "o"], 1, "whole numbers ("),
        (["import", "none.pth", "--model", "adder_lenet5_bn", "-o", "o"], 1, "0 input channel(s)"),
    ],
)  # fmt: skip
def test_wrong_arguments(tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    key = "stages.0.conv.weight"
    state = timm.create_model("adder_lenet5_bn").state_dict()
    torch.save(state, "x.pth")
    torch.save({**state, key: state[key].to(torch.float8_e4m3fn)}, "f8.pth")
    torch.save({**state, key: state[key].to_sparse()}, "sparse.pth")
    torch.save({**state, key: state[key].to(torch.int64)}, "whole.pth")
    torch.save({**state, key: state[key][:, :0]}, "none.pth")
    (tmp_path / "utf16.txt").write_bytes("a\nb\n".encode("utf-16"))
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    Image.new("L", (28, 28)).save("a.png")
    refused = run(*args, code=code)
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "o").exists()

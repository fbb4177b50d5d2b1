"""``export_c`` and ``adder-zoo export --format c``: the compiled program gives the integers of Python."""

import shutil
import subprocess
import warnings

import pytest
import timm
import torch
from click.testing import CliRunner
from integer_networks import integer_network, pixels
from PIL import Image

import adder_zoo
from adder_zoo.cli import _integers, main
from adder_zoo.integer import filters
from adder_zoo.integer.c import source
from adder_zoo.integer.c.plan import plan, size_of
from adder_zoo.integer.reference import reads, writes

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
CASES = [
    ("mixed", "adder", False),
    ("mixed", "adder", True),
    ("mixed", "conv", True),
    ("grouped", "adder", True),
    ("grouped", "conv", False),
    ("adder_resnet8", "conv", False),
]


def needs(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def output_of(*command, cwd, data=b""):
    result = subprocess.run(command, cwd=cwd, input=data, capture_output=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()[-2000:]
    return result.stdout.decode()


def lines_of(logits):
    return "".join(f"{' '.join(map(str, row))}: {torch.tensor(row).argmax()}\n" for row in logits.tolist())


@pytest.mark.parametrize("lanes", [False, True], ids=["vectors", "lanes"])
@pytest.mark.parametrize(("name", "similarity", "multiplier_free"), CASES)
def test_the_program_gives_the_integers_of_python(name, similarity, multiplier_free, lanes, tmp_path):
    """Logits of new images, and every tensor of one, in both ways in which a processor adds up differences."""
    needs("gcc")
    network, _, images = integer_network(name, similarity, multiplier_free)
    adder_zoo.export_c(network, tmp_path / "c", "tiny", images[:2])
    flags = [*STRICT, "-O1", *(["-DUSE_LANES"] if lanes else [])]
    output_of("gcc", *flags, "-DNETWORK_TRACE", "-o", "trace", "main.c", "tiny.c", cwd=tmp_path / "c")
    new = pixels(3, *(network.image[i] for i in (2, 0, 1)), seed=5)
    printed = output_of("./trace", cwd=tmp_path / "c", data=new.numpy().tobytes())
    expected = ""
    for image in new:
        for tensor, value in network.activations(image[None]).items():
            rows = value[0].flatten(0, 1).tolist()
            expected += f"# {tensor}\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows)
        expected += lines_of(network(image[None]))
    assert printed == expected


def test_make_test_holds_the_program_against_its_vectors(tmp_path):
    needs("gcc", "make")
    network, _, images = integer_network("mixed")
    facts = adder_zoo.export_c(network, tmp_path / "c", "tiny", images)
    assert facts["vectors"] == 16
    assert "equal to the test vectors" in output_of("make", "CC=gcc", "CFLAGS=-O1", "test", cwd=tmp_path / "c")
    assert (tmp_path / "c/vectors/logits.txt").read_text() == lines_of(network(images))
    with (tmp_path / "c/vectors/activations/01_levels.txt").open("a") as file:
        file.write("0\n")
    failed = subprocess.run(["make", "CC=gcc", "test"], cwd=tmp_path / "c", capture_output=True, check=False)
    assert failed.returncode != 0


@pytest.mark.parametrize(
    ("name", "similarity", "multiplier_free", "lanes"),
    [("mixed", "adder", False, ["-DUSE_LANES"]), ("mixed", "conv", True, []), ("grouped", "adder", False, [])],
)
def test_sanitizers_find_nothing(name, similarity, multiplier_free, lanes, tmp_path):
    needs("clang")
    network, _, images = integer_network(name, similarity, multiplier_free)
    adder_zoo.export_c(network, tmp_path / "c", "tiny", images)
    sanitize = ["-g", "-O1", "-fsanitize=integer,address,undefined", "-fno-sanitize-recover=all"]
    output_of("clang", *STRICT, *sanitize, *lanes, "-o", "run", "main.c", "tiny.c", cwd=tmp_path / "c")
    extreme = torch.cat([torch.zeros_like(images[:1]), torch.full_like(images[:1], 255), images[:4]])
    printed = output_of("./run", cwd=tmp_path / "c", data=extreme.numpy().tobytes())
    assert printed == lines_of(network(extreme))


def test_every_sum_of_two_powers_has_its_byte():
    for value, code in source.TWO_POWERS.items():
        first, second = code & 15, code >> 4
        terms = [(-1) ** (part >> 3) * 2 ** (part & 7) for part in (first, second)]
        assert sum(terms) == value
    assert set(filters._sums_of_two_powers(torch.randn(40, 50).double())[0].flatten().tolist()) <= set(
        source.TWO_POWERS
    )


def test_half_an_image_is_an_error(tmp_path):
    needs("gcc")
    network, _, images = integer_network("mixed")
    adder_zoo.export_c(network, tmp_path / "c", "tiny", images)
    output_of("gcc", "-o", "run", "main.c", "tiny.c", cwd=tmp_path / "c")
    half = subprocess.run(["./run"], cwd=tmp_path / "c", input=b"12345", capture_output=True, check=False)
    assert half.returncode == 1
    assert b"ends within an image: an image is 297 bytes" in half.stderr


@pytest.mark.parametrize("name", ["mixed", "adder_resnet8"])
def test_tensors_that_are_needed_at_once_do_not_overlap(name):
    network, _, _ = integer_network(name)
    planned = plan(network)
    living = {}
    for i, step in enumerate(network.steps):
        later = {n for s in network.steps[i:] for n in reads(s)}
        living = {n: place for n, place in living.items() if n in later}
        for placed in writes(step):
            if placed.name == network.logits.name:
                continue
            here = range(planned.offsets[placed.name], planned.offsets[placed.name] + size_of(placed))
            assert here.stop <= planned.patch
            for other, place in living.items():
                assert here.stop <= place.start or place.stop <= here.start, (placed.name, other)
            living[placed.name] = here


def test_bad_input_is_refused_and_loses_nothing(tmp_path):
    network, _, images = integer_network("mixed")
    for name in ("layers", "2fast", "a-b", "int", "", "né"):
        with pytest.raises(ValueError, match="is not a C identifier"):
            adder_zoo.export_c(network, tmp_path / "c", name, images)
    with pytest.raises(ValueError, match="at least one image"):
        adder_zoo.export_c(network, tmp_path / "c", "tiny", images[:0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        adder_zoo.export_c(network, tmp_path / "full", "tiny", images)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


def command(*args, code=0):
    result = CliRunner().invoke(main, ["export", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_a_folder(tmp_path):
    needs("gcc", "make")
    (tmp_path / "data").mkdir()
    for number, image in enumerate(pixels(12, 1, 28, 28)):
        Image.fromarray(image[..., 0].numpy()).save(tmp_path / f"data/{number}.png")
    options = ("--format", "c", "--data-dir", tmp_path / "data")
    said = command("adder_lenet5_bn.mnist", "-o", tmp_path / "c", *options, "--multiplier-free").stdout
    assert "a buffer of 7,0" in said
    assert "no multiplication" in said
    assert "#define ADDER_LENET5_BN_MNIST_CLASSES 10" in (tmp_path / "c/adder_lenet5_bn_mnist.h").read_text()
    output_of("make", "CC=gcc", "CFLAGS=-O1", "test", cwd=tmp_path / "c")
    assert "is not empty" in command("adder_lenet5_bn.mnist", "-o", tmp_path / "c", *options, code=1).stderr
    said = command("adder_lenet5_bn.mnist", "-o", tmp_path / "d", *options, "--name", "3", code=1).stderr
    assert "'3' is not a C identifier" in said
    said = command("adder_lenet5_bn.mnist", "-o", tmp_path / "d", "--format", "c", code=1).stderr
    assert "give --data-dir" in said
    said = command("adder_lenet5_bn", "-o", tmp_path / "twin", *options, "--similarity", "conv").stderr
    assert "random weights" in said
    assert "products(" in (tmp_path / "twin/adder_lenet5_bn.c").read_text()


@pytest.mark.parametrize("tag", ["mnist", "mnist_int8"])
def test_the_command_reads_the_files_of_the_networks_data_set(tag, tmp_path, monkeypatch):
    asked = []
    digits = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("adder_zoo.datasets.find", lambda name, folder: asked.append(name))
    monkeypatch.setattr("adder_zoo.datasets.load", lambda name, found, quiet: {"train": (digits, None)})
    command(f"adder_lenet5_bn.{tag}", "-o", tmp_path / "c", "--format", "c", "--data-dir", tmp_path)
    assert asked == ["mnist"]


def test_images_are_taken_from_all_folders_of_classes(tmp_path, monkeypatch):
    """Ranges of one class would not fit the others."""
    monkeypatch.setattr(_integers, "CALIBRATION", 4)
    for number, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("L", (2, 2), number).save(tmp_path / name / f"{i}.png")
    found = [image.getpixel((0, 0)) for image in _integers._pictures(timm.create_model("adder_lenet5_bn"), tmp_path, 1)]
    assert found == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("multiplier_free", [False, True])
@pytest.mark.parametrize(
    ("name", "dataset"), [("adder_lenet5_bn.mnist", "mnist"), ("adder_resnet20.cifar10", "cifar10")]
)
def test_a_thousand_images_have_equal_integers(name, dataset, multiplier_free, data_dir, tmp_path):
    needs("gcc")
    from integer_images import read

    calibration, _ = read(dataset, "train", data_dir, 256)
    images, _ = read(dataset, "test", data_dir, 1000)
    model = timm.create_model(name, pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="quantize: these adder layers stay float32")
        small = adder_zoo.quantize(model, (calibration.permute(0, 3, 1, 2) / 255 - mean) / std)
    network = adder_zoo.to_integers(small, calibration, multiplier_free=multiplier_free)
    adder_zoo.export_c(network, tmp_path / "c", "whole", images)
    output_of("gcc", *STRICT, "-O3", "-o", "run", "main.c", "whole.c", cwd=tmp_path / "c")
    assert output_of("./run", cwd=tmp_path / "c", data=images.numpy().tobytes()) == lines_of(network(images))

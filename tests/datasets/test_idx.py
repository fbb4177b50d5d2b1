"""Reading idx files: what is found, what is refused, and that the bundled sample is what its script draws."""

import gzip
import struct

import pytest
import torch
from data import draw_fashion_mnist_sample as draw
from mnist import SAMPLE

from adder_zoo.datasets.idx import DataError, find, load, read_idx, resize


def write_idx(path, tensor, compress=False):
    content = bytes([0, 0, 8, tensor.dim()]) + struct.pack(f">{tensor.dim()}I", *tensor.shape)
    content += bytes(tensor.flatten().tolist())
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture
def folder(tmp_path):
    for prefix, n in (("train", 12), ("t10k", 5)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", torch.randint(256, (n, 28, 28), dtype=torch.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", torch.arange(n).remainder(10).to(torch.uint8), True)
    return tmp_path


def test_reads_plain_and_gzipped_files(folder):
    splits, part = load("mnist", find("mnist", str(folder)))
    assert part == "unknown"
    assert splits["train"][0].shape == (12, 28, 28)
    assert splits["test"][1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layout", ["MNIST/raw", "mnist", "raw"])
def test_finds_the_usual_layouts_and_the_environment(folder, tmp_path_factory, monkeypatch, layout):
    root = tmp_path_factory.mktemp("root")
    place = root / layout
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)
    assert find("mnist", str(root)) == place
    monkeypatch.setenv("ADDER_ZOO_DATA", str(root))
    assert find("mnist", None) == place


def test_bundled_sample():
    splits, part = load("fashion_mnist", SAMPLE)
    assert part == "sample"
    for split, each in (("train", 500), ("test", 100)):
        images, labels = splits[split]
        assert images.shape == (10 * each, 28, 28)
        assert torch.equal(labels.bincount(), torch.full((10,), each))
    assert sum(f.stat().st_size for f in SAMPLE.iterdir()) < 3_000_000
    with pytest.raises(DataError, match="holds fashion_mnist, not mnist"):
        load("mnist", SAMPLE)


def test_sample_is_what_the_script_draws():
    if not draw.SOURCE.is_dir():
        pytest.skip(f"needs Debian's package dataset-fashion-mnist in {draw.SOURCE}")
    for name, content in draw.draw(draw.SOURCE).items():
        assert gzip.decompress((SAMPLE / name).read_bytes()) == content, name


def test_resize_is_bilinear_and_keeps_grey():
    image = torch.full((1, 28, 28), 77, dtype=torch.uint8)
    assert torch.equal(resize(image, 32), torch.full((1, 32, 32), 77, dtype=torch.uint8))


def test_missing_data_lists_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.delenv("ADDER_ZOO_DATA", raising=False)
    with pytest.raises(DataError, match=r"Looked in:[\s\S]*MNIST/raw"):
        find("mnist", str(tmp_path))
    with pytest.raises(DataError, match="ADDER_ZOO_DATA"):
        find("mnist", None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[: len(b) // 2], "needs 9408"),
        (lambda b: b + b"\0", "needs 9408"),
        (lambda b: b"\1\2\3\4" + b[4:], "not an idx file"),
        (lambda b: b[:6], "cut off in its header"),
        (lambda b: b"", "starts with nothing"),
        (lambda b: gzip.compress(b)[:-9], "cannot be read"),
        (lambda b: b"\x1f\x8b" + b[2:], "cannot be read"),
    ],
    ids=["cut", "too long", "foreign", "no header", "empty", "cut gzip", "no gzip"],
)
def test_damaged_file_is_named(folder, damage, words):
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        load("mnist", folder)
    assert str(file) in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", torch.zeros(4, dtype=torch.uint8), True)
    with pytest.raises(DataError, match="does not fit 5 images"):
        load("mnist", folder)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", torch.full((5,), 11, dtype=torch.uint8), True)
    with pytest.raises(DataError, match="from 0 to 9"):
        load("mnist", folder)
    write_idx(folder / "t10k-images-idx3-ubyte", torch.zeros(5, 32, 32, dtype=torch.uint8))
    with pytest.raises(DataError, match="28 x 28"):
        load("mnist", folder)


def test_read_idx_gives_any_rank(tmp_path):
    for shape in ((3,), (2, 0), (1, 2, 3, 4)):
        write_idx(tmp_path / "f", torch.zeros(shape, dtype=torch.uint8))
        assert read_idx(tmp_path / "f").shape == shape

"""Photographs in shards of WebDataset: every image in its turn, split among loaders, and named where it is damaged."""

import io
import itertools
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from adder_zoo.datasets import DataError
from adder_zoo.training.photographs import Shards

pytest.importorskip("webdataset")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def make(tmp_path):
    """A data set of 11 images, whose pixels are their numbers, in 3 shards."""

    def write(files=lambda i: {"png": png(i), "cls": str(i % 5).encode()}, alt_label="", **options):
        for shard in range(3):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
                for i in range(shard, 11, 3):
                    for ending, content in files(i).items():
                        info = tarfile.TarInfo(f"{i:05d}.{ending}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        split = SimpleNamespace(filenames=tuple(f"{shard}.tar" for shard in range(3)), alt_label=alt_label)
        reader = SimpleNamespace(root=str(tmp_path), split_info=split, num_samples=11, input_key="jpg;png;webp")
        options = {"training": False, "batch_size": 2, "workers": 1, "seed": 0, **options}
        return Shards(reader, lambda image: int(np.asarray(image)[0, 0, 0]), **options)

    return write


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_each_image_is_tested_once(make, workers):
    data = make(workers=workers)
    pairs = [pair for batch in DataLoader(data, 2, num_workers=workers) for pair in zip(*batch, strict=True)]
    assert sorted(int(image) for image, _ in pairs) == list(range(11))
    assert all(int(label) == int(image) % 5 for image, label in pairs)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_each_loader_trains_with_equally_many(make, workers):
    data = make(training=True, workers=workers)
    batches = list(DataLoader(data, 2, num_workers=workers))
    assert len(batches) == len(DataLoader(data, 2, num_workers=workers)) == {0: 6, 2: 6, 3: 6}[workers]
    images = [int(image) for batch in batches for image in batch[0]]
    assert len(images) == len(data) == 12
    if workers == 0:
        assert set(images) == set(range(11))


def test_order_is_of_the_epoch(make):
    data = make(training=True)
    orders = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        orders.append([image for image, _ in data])
    assert orders[0] == orders[2] != orders[1]
    assert [image for image, _ in make(training=True, seed=1)] != orders[0]


def test_labels_from_json_and_images_left_out(make):
    data = make(lambda i: {"png": png(i), "json": json.dumps({"cls12k": i - 4}).encode()}, "cls12k")
    assert sorted(data) == [(i, i - 4) for i in range(4, 11)]


def test_too_few_shards(make):
    with pytest.raises(DataError, match="3 shards are too few for 4 loaders"):
        list(DataLoader(make(training=True, workers=4), 2, num_workers=4))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cls": b"1"}, "has no file that ends in .jpg, .png, .webp"),
        ({"png": png(0)[:45], "cls": b"1"}, "cannot be read"),
        ({"png": b"no image", "cls": b"1"}, "cannot be read"),
        ({"png": png(0)}, "the label of image"),
        ({"png": png(0), "cls": b"dog"}, "the label of image"),
    ],
)
def test_damaged_image_is_named(make, training, files, words):
    good = {"png": png(1), "cls": b"1"}
    data = make(lambda i: files if i == 6 else good, training=training)
    with pytest.raises(DataError, match=rf"image 00006 of .*0\.tar.*{words}|{words} 00006 of .*0\.tar"):
        list(itertools.islice(data, 30))


def test_damaged_archive_is_an_error(make, tmp_path):
    data = make()
    content = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(content[:700])
    with pytest.raises(DataError, match="the shards cannot be read"):
        list(data)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"the shards cannot be read.*1\.tar"):
        list(data)

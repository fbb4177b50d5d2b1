"""recipes/imagenet.py on a few photographs that are made up, as files and as shards."""

import inspect
import io
import json
import tarfile

import imagenet
import numpy as np
import pytest
import timm
from accelerate.state import AcceleratorState
from PIL import Image
from recipe_runs import RECIPE, assert_same_run, killed_at

from adder_zoo.datasets import DataError
from adder_zoo.training import RecipeError, parse_settings

IMAGENET = [
    "--model", "adder_mobilenetv3_small_050", "--img-size", "32", "--num-classes", "3", "--batch-size", "6",
    "--bn-batches", "1", "--epochs", "2", "--cpu", "--threads", "1", "--report-to", "none",
    "--checkpointing-steps", "1", "--aa", "rand-m5", "--reprob", "0.5", "--color-jitter", "0.2",
]  # fmt: skip


def test_imagenet_goes_on_to_the_same_weights_whoever_loads_the_images(alone, tmp_path, monkeypatch, photographs):
    argv = [*IMAGENET, "--data-dir", str(photographs)]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = imagenet.main([*argv, "--workers", "0", "--output-dir", str(whole)])
    assert (results["model"], results["train_images"], results["test_images"]) == (
        "adder_mobilenetv3_small_050.in1k",
        18,
        6,
    )
    assert results["test_top5_accuracy"] == 100  # of three classes
    named = timm.create_model(f"local-dir:{whole}").pretrained_cfg["label_names"]
    assert list(named) == sorted(folder.name for folder in (photographs / "train").iterdir())
    AcceleratorState._reset_state(True)
    killed_at(monkeypatch, 4, imagenet.main, [*argv, "--workers", "0", "--output-dir", str(stopped)])
    AcceleratorState._reset_state(True)
    imagenet.main([*argv, "--workers", "2", "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_damaged_photograph_is_named(alone, tmp_path, photographs, workers):
    file = photographs / "train" / "dog" / "3.jpeg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train/dog/3\.jpeg cannot be read"):
        imagenet.main(
            [*IMAGENET, "--data-dir", str(photographs), "--workers", workers, "--output-dir", str(tmp_path / "r")]
        )


def test_photographs_that_do_not_fit_are_refused(alone, tmp_path, photographs, monkeypatch):
    monkeypatch.delenv("ADDER_ZOO_DATA", raising=False)
    for flags, words in (
        (["--data-dir", str(photographs), "--num-classes", "2"], "give --num-classes 3"),
        (["--data-dir", str(tmp_path / "nowhere")], "no train images in"),
        ([], "no --data-dir"),
        (["--data-dir", str(photographs / "train")], r"has no folder train/.*--train-split=''"),
        (["--data-dir", str(photographs), "--val-split", "test"], "has no folder test/"),
    ):
        AcceleratorState._reset_state(True)
        with pytest.raises(DataError, match=words):
            imagenet.main([*IMAGENET, "--output-dir", str(tmp_path / "run"), *flags])
        assert not (tmp_path / "run").exists()


def test_classes_that_differ_are_refused(alone, tmp_path, photographs):
    (photographs / "val" / "bird").rename(photographs / "val" / "tiger")
    with pytest.raises(DataError, match="would shift the labels: only one has bird, tiger"):
        imagenet.main([*IMAGENET, "--data-dir", str(photographs), "--output-dir", str(tmp_path / "run")])


def test_network_is_trained_and_tested_as_the_paper_has_it():
    """timm starts the last batch norm of a block at 0, and tests ResNets on 0.95 of each side of an image."""
    for flags, gamma, crop in (([], 1, 0.875), (["--zero-init-last", "--crop-pct", "0"], 0, 0.95)):
        for name in ("adder_resnet18", "resnet18"):
            model, _ = imagenet.create(parse_settings(imagenet.Config, "", ["--model", name, *flags]))
            assert timm.data.resolve_data_config(model=model)["crop_pct"] == crop
            assert {float(block.bn2.weight.detach().unique()) for block in model.layer1} == {gamma}
    model, teacher = imagenet.create(
        parse_settings(imagenet.Config, "", ["--model", "adder_resnet18", "--distillation", "pkkd"])
    )
    assert float(teacher.layer1[0].bn2.weight.detach().unique()) == 1


def test_noise_is_tested_on_few_images():
    config = parse_settings(imagenet.Config, "", ["--model", "adder_resnet18", "--synthetic", "--max-steps", "100"])
    model, _ = imagenet.create(config)
    data = imagenet.data(config, model)
    assert (len(data.train), len(data.test)) == (1_281_167, 1_000)


def test_timm_is_as_it_was():
    """Reading photographs as the recipe wants them takes no change of timm's modules."""
    for module in (timm.data.dataset, timm.data.readers.reader_wds):
        for function in filter(inspect.isfunction, vars(module).values()):
            assert not function.__module__.startswith(("imagenet", "adder_zoo")), function
    assert timm.data.dataset._ERROR_RETRY > 1


def test_flat_folder_is_taken_where_it_is_asked_for(alone, tmp_path, photographs):
    """One folder of classes as both, to try the pipeline; the network says which size its images had."""
    flags = ["--data-dir", str(photographs / "train"), "--train-split", "", "--val-split", "", "--epochs", "1"]
    results = imagenet.main([*IMAGENET, *flags, "--workers", "0", "--output-dir", str(tmp_path / "run")])
    assert (results["train_images"], results["test_images"]) == (18, 18)
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 32, 32)


@pytest.mark.slow
def test_hundred_photographs(alone, tmp_path, data_dir):
    """As docs/imagenet.md has it: real images, at another size each."""
    if not (data_dir / "imagenet_sample").is_dir():
        pytest.skip("no imagenet_sample in ADDER_ZOO_DATA")
    config = RECIPE.parent / "configs" / "imagenet_smoke.yaml"
    flags = ["--config", str(config), "--model", "adder_resnet18", "--data-dir", str(data_dir / "imagenet_sample")]
    results = imagenet.main([*flags, "--cpu", "--report-to", "none", "--output-dir", str(tmp_path / "run")])
    assert (results["updates"], results["test_images"]) == (10, 100)


def test_photographs_are_not_looked_for_among_other_data(alone, tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("ADDER_ZOO_DATA", str(photographs))
    with pytest.raises(DataError, match=r"no train images in .*imagenet"):
        imagenet.main([*IMAGENET, "--output-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("flags", [["--similarity", "conv"], ["--distillation", "pkkd"]])
def test_networks_of_timm_have_no_similarity(alone, tmp_path, flags):
    with pytest.raises(RecipeError, match="--model adder_resnet18"):
        imagenet.main([*IMAGENET, "--model", "resnet18", *flags, "--output-dir", str(tmp_path / "run")])


def test_stream_of_shards(alone, tmp_path, monkeypatch):
    """WebDataset's shards, which can only be read from their beginning: the stopped run reads up to where it was."""
    pytest.importorskip("webdataset")
    rng = np.random.default_rng(0)
    sizes = {}
    for split, count in (("train", 12), ("validation", 7)):
        for shard in range(2):
            name = f"images-{split}-{shard:04d}.tar"
            with tarfile.open(tmp_path / name, "w") as tar:
                for i in range(shard, count, 2):
                    buffer = io.BytesIO()
                    Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(buffer, "png")
                    for suffix, content in (("png", buffer.getvalue()), ("cls", str(i % 3).encode())):
                        info = tarfile.TarInfo(f"{i:05d}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            sizes.setdefault(split, {"name": split, "filenames": [], "shard_lengths": [], "num_samples": count})
            sizes[split]["filenames"].append(name)
            sizes[split]["shard_lengths"].append(len(range(shard, count, 2)))
    (tmp_path / "_info.json").write_text(json.dumps({"splits": sizes}))
    argv = [*IMAGENET, "--dataset", "wds/", "--data-dir", str(tmp_path), "--workers", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    results = imagenet.main([*argv, "--output-dir", str(whole)])
    assert (results["updates"], results["test_images"]) == (4, 7)
    AcceleratorState._reset_state(True)
    killed_at(monkeypatch, 3, imagenet.main, [*argv, "--output-dir", str(stopped)])  # within the second epoch
    AcceleratorState._reset_state(True)
    imagenet.main([*argv, "--output-dir", str(stopped)])
    assert_same_run(whole, stopped)

    shard = tmp_path / "images-train-0000.tar"
    content = shard.read_bytes()
    at = content.index(b"IDAT") + 10  # in the first image's pixels
    shard.write_bytes(content[:at] + bytes(200) + content[at + 200 :])
    AcceleratorState._reset_state(True)
    with pytest.raises(DataError, match=r"image 00000 of .*images-train-0000\.tar cannot be read"):
        imagenet.main([*argv, "--output-dir", str(tmp_path / "damaged")])

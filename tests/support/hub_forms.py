"""What ``tests/hub/test_forms.py`` runs in a process of its own: the collection, a notebook, networks in bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import timm
import torch
from hub_scenarios import attempt, commands, network, server
from huggingface_hub import HfApi
from PIL import Image

import adder_zoo
from adder_zoo import hub
from adder_zoo.cli._common import create
from adder_zoo.paths import WEIGHTS


def collection() -> dict:
    def collect(**notes):
        done = hub.collect("org", notes)
        return [done.url, done.repo_id, done.changed]

    said = {"first": collect(a="90.00 % on MNIST"), "again": collect(a="90.00 % on MNIST")}
    said["better"] = collect(a="91.00 % on MNIST", b="80.00 % on MNIST")
    api, slug = HfApi(), said["first"][1]
    items = {item.item_id: item.item_object_id for item in api.get_collection(slug).items}
    api.update_collection_item(slug, items["org/b"], note="our best")
    hub.push_to_hub(network("adder_lenet5_bn"), "org/theirs")
    api.add_collection_item(slug, "org/theirs", "model")
    said["by hand"] = collect(a="91.00 % on MNIST", b="85.00 % on MNIST")
    server("/_calls")
    dry = hub.collect("org", {"a": ""}, dry_run=True)
    assert server("/_calls") == []
    said["dry"] = [dry.url, dry.repo_id, dry.changed]
    said["read only"] = attempt(hub.collect, "org", {"a": ""}, token=os.environ["READ_TOKEN"])[1]
    said["not there"] = attempt(hub.collect, "org", {"none": ""})[1]
    return said


def own_notebook(run: str) -> None:
    hub.push_to_hub(network("adder_lenet5_bn"), "org/own")
    mine = b'{"cells": [], "metadata": {"mine": 1}}'
    HfApi().upload_file(path_or_fileobj=mine, path_in_repo="notebook.ipynb", repo_id="org/own")
    hub.push_to_hub(run, "org/own")


@torch.no_grad()
def in_bytes() -> dict:
    """The network that the package ships, pushed from its folder, and one that a user made, pushed from memory."""
    shipped = "adder_resnet20.cifar10_int8"
    hub.push_to_hub(WEIGHTS / shipped, f"org/{shipped}")
    trained = timm.create_model("adder_lenet5_bn.mnist", pretrained=True).eval()
    mine = adder_zoo.quantize(trained, torch.randn(16, 1, 32, 32))  # other ranges than those of the package's own
    hub.push_to_hub(mine, "user/mine")
    pushed = {f"org/{shipped}": timm.create_model(shipped, pretrained=True).eval(), "user/mine": mine}
    Image.radial_gradient("L").save("image.png")
    said = {}
    for repo_id, want in pushed.items():
        x = torch.randn(4, *want.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))
        name = f"hf-hub:{repo_id}"
        pulled = {"timm": timm.create_model(name, pretrained=True).eval(), "commands": create(name, pretrained=True)}
        state = want.state_dict()
        said[repo_id] = {way: torch.equal(model(x), want(x)) for way, model in pulled.items()}
        said[repo_id]["predict"] = commands(json.dumps(["predict", name, str(Path("image.png").resolve())]))[0][
            "status"
        ]
        again = pulled["timm"].state_dict()
        said[repo_id]["bytes"] = again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)
    refusals = {
        "features": attempt(timm.create_model, "hf-hub:user/mine", pretrained=True, features_only=True)[1],
        "classes": attempt(timm.create_model, "hf-hub:user/mine", pretrained=True, num_classes=3)[1],
    }
    return {"int8": said, "int8 refusals": refusals}


def main(run: str) -> dict:
    own_notebook(run)
    return {**collection(), **in_bytes()}

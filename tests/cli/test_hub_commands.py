"""The commands that talk to the Hub: push, list --hub, and those that load a network."""

import json
import re
from pathlib import Path

import pytest
import timm
from hub_process import ROOT, RUN, RUN_FILES, scenario
from hub_server import WRITE_TOKEN, HubServer
from PIL import Image

from adder_zoo.hub import save_pretrained
from adder_zoo.page.folder import write_page
from adder_zoo.paths import WEIGHTS

COMMANDS = [
    ["push", str(RUN), "org/one", "--dry-run"],
    ["push", str(RUN), "org/one", "--private", "--commit-message", "First"],
    ["push", str(RUN), "org/one"],
    ["push", str(RUN), "org/one", "--revision", "next"],
    ["push", str(RUN), "org/one", "--create-pr"],
    ["push", "--all", "zoo"],
    ["push", "--all", "zoo", "--json"],
    ["list", "--hub", "zoo"],
    ["list", "--hub", "zoo", "--json"],
    ["list", "--hub", "zoo", "--card"],
    ["list", "--hub", "nobody"],
    ["push", str(RUN)],
    ["push", "--all", "zoo", str(RUN)],
    ["push", "FOLDER/none", "org/one"],
    ["push", "FOLDER", "org/one"],
    ["list", "--card"],
    ["push", "--help"],
    ["push", str(RUN), "org/one", "--dry-run", "--json"],
    ["push", str(RUN), "org/one", "--json"],
]


@pytest.mark.long
def test_commands(tmp_path):
    lines = [[word.replace("FOLDER", str(tmp_path)) for word in line] for line in COMMANDS]
    with HubServer(tmp_path / "hub") as hub:
        said = scenario(hub, tmp_path / "home", "commands", *map(json.dumps, lines), HF_TOKEN=WRITE_TOKEN)
        out = [answer["output"] for answer in said]
        assert [answer["status"] for answer in said] == [0] * 10 + [1, 2, 2, 2, 1, 2, 0, 0, 0], said
        assert re.search(r"model\.safetensors +252,136\n", out[0])
        assert "model-index:" in out[0]
        assert out[1].startswith(f"org/one: pushed, {hub.url}/org/one/commit/")
        assert out[2] == "org/one: up to date\n"
        one = hub.repository("org/one")
        assert [c["summary"] for c in one.history()] == ["First"]
        assert one.meta["private"] is True
        assert set(one.refs) == {"main", "next"}  # nothing to change is no pull request either

        shipped = sorted(path.name for path in WEIGHTS.iterdir() if (path / "results.json").is_file())
        assert sorted(p.name for p in (hub.folder / "models/zoo").iterdir()) == shipped
        kinds = {name: name.removeprefix("adder_").removesuffix("_int8") for name in shipped}
        twins = {name for name, kind in kinds.items() if (ROOT / f"docs/results/{kind}-conv").is_dir()}
        for name in shipped:
            without = set() if name in twins else {"results-conv.json"}
            without |= {"args.yaml", "log.csv"} if name.endswith("_int8") else set()  # nothing was trained for it
            dataset = name.partition(".")[2].removesuffix("_int8")
            named = {path.replace("adder_zoo-mnist", f"adder_zoo-{dataset}") for path in RUN_FILES - without}
            assert set(hub.repository(f"zoo/{name}").files()) == named
        ((slug, collection),) = hub.collections.by_slug.items()
        assert slug.startswith("zoo/networks-without-multiplications-")
        assert [item["id"] for item in collection["items"]] == [f"zoo/{name}" for name in shipped]
        kernel = hub.repository("zoo/adder2d", "kernels")
        assert set(kernel.refs) == {"main", "v1"}
        assert "zoo/adder2d" in kernel.files("v1")["README.md"].decode()
        page = hub.repository("zoo/README", "spaces").files()["README.md"].decode()
        assert out[5].count(": pushed, ") == len(shipped) + 4
        everything = json.loads(out[6])
        assert [row["pushed"] for row in everything] == [False] * (len(shipped) + 4), "a second push changed something"

        assert [line.split()[0] for line in out[7].splitlines()[2:]] == [f"zoo/{name}" for name in shipped]
        rows = json.loads(out[8])
        assert out[9] == page
        for row in rows:
            record = json.loads((WEIGHTS / row["model"].removeprefix("zoo/") / "results.json").read_text())
            assert row["accuracy"] == record["test_accuracy"]
            assert f"{row['accuracy']:.2f} %" in out[7]
            assert (row["twin_accuracy"] is not None) == (row["model"].removeprefix("zoo/") in twins)
            twin = f"{row['twin_accuracy']:.2f} %" if row["twin_accuracy"] is not None else ""
            assert f"| {row['accuracy']:.2f} % | {twin} |" in page
        assert "hf auth login" in out[10]
        assert "no finished run" in out[14]
        assert "Examples:" in out[16]
        assert "HF_TOKEN" in out[16]
        dry, again = (json.loads(text) for text in out[17:])
        assert [dry["dry_run"], dry["pushed"], dry["url"], dry["card"][:4]] == [True, False, None, "---\n"]
        assert set(dry["files"]) == RUN_FILES
        assert [again[key] for key in ("repo_id", "branch", "dry_run", "pushed")] == ["org/one", "main", False, False]
        assert [row["branch"] for row in everything if row["repo_id"] == "zoo/adder2d"] == ["v1", "main"]
        (row,) = (row for row in everything if row["branch"] == "collection")
        assert [row["repo_id"], row["url"]] == [slug, f"{hub.url}/collections/{slug}"]


@pytest.fixture
def stocked(tmp_path):
    folder = save_pretrained(timm.create_model("adder_resnet32"), tmp_path / "resnet32")
    with HubServer(tmp_path / "hub") as server:
        server.add("zoo/adder_resnet32.cifar10", {path.name: path.read_bytes() for path in folder.iterdir()})
        yield server


def test_commands_know_the_organisation(stocked, tmp_path):
    """What `timm.create_model("adder_resnet32", pretrained=True)` loads, the commands load."""
    image = tmp_path / "data" / "a" / "image.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(image)
    names = str(tmp_path / "names.txt")
    Path(names).write_text("".join(f"{name}\n" for name in "abcdefghij"))
    lines = [
        ["predict", "adder_resnet32", str(image), "--json"],
        ["validate", "adder_resnet32.cifar10", "--data-dir", str(tmp_path / "data"), "--class-map", names, "--json"],
        ["export", "adder_resnet32", "-o", str(tmp_path / "net.pt2"), "--json"],
        ["list", "resnet*", "--pretrained", "--json"],
        ["info", "adder_resnet32"],
        ["info", "adder_resnet20"],
    ]
    said = scenario(stocked, tmp_path / "home", "commands_of_an_organisation", image, *map(json.dumps, lines))
    out = [answer["output"] for answer in said["organisation"]]
    assert [answer["status"] for answer in said["organisation"]] == [0] * len(lines), out
    assert len(json.loads(out[0])[0]["predictions"]) == 5
    assert json.loads(out[1])["images"] == 1
    assert json.loads(out[2])["largest_difference"] < 1e-2
    weights = {row["model"]: row["weights"] for row in json.loads(out[3])}
    assert weights["adder_resnet20.cifar10"] == "package"
    assert weights["adder_resnet32.cifar10"] == "zoo/adder_resnet32.cifar10"
    assert "adder_resnet110.cifar10" not in weights
    assert "Weights: zoo/adder_resnet32.cifar10" in out[4]
    assert "weights/adder_resnet20.cifar10/model.safetensors" in out[5]
    (missing,) = said["missing"]
    assert missing["status"] == 1
    assert "zoo/adder_resnet110.cifar10: fetching config.json failed" in missing["output"]
    assert len(said["missing calls"]) == 1, "the first answer told it"


def test_commands_without_a_hub(tmp_path):
    """At once, and with the repository and the file; a push's advice has no place there."""
    with HubServer(tmp_path / "hub") as hub:
        pass
    lines = [["export", name, "-o", str(tmp_path / "net.pt2")] for name in ("hf-hub:org/x@next", "adder_resnet32")]
    lines.append(["list", "resnet32", "--json"])
    said = scenario(hub, tmp_path / "one", "commands", *map(json.dumps, lines), ADDER_ZOO_HUB_ORG="zoo")
    for answer, repository in zip(said, ("org/x", "zoo/adder_resnet32.cifar10"), strict=False):
        assert answer["status"] == 1
        assert f"{repository}: fetching config.json failed" in answer["output"]
        assert "cannot be reached" in answer["output"]
        assert "half changed" not in answer["output"]
    assert max(answer["seconds"] for answer in said) < 10
    assert said[2]["status"] == 0  # the list is that of the package, with a warning
    assert "warning: ADDER_ZOO_HUB_ORG is set" in said[2]["output"]


def test_a_page_becomes_a_static_space(tmp_path):
    cost = {"multiplications": 1, "additions": 2, "fp32": 3.0, "int8": 4.0}
    network = {"name": "one", "license": "apache-2.0", "costs": {"ours": cost, "twin": cost}}
    write_page(tmp_path / "page", [network])
    (tmp_path / "other").mkdir()
    page = str(tmp_path / "page")
    lines = [
        ["push", page, "--space", "org/page", "--dry-run"],
        ["push", page, "--space", "org/page"],
        ["push", page, "--space", "org/page"],
        ["push", page, "--space", "org/old"],
        ["push", str(tmp_path / "other"), "--space", "org/page"],
        ["push", page, "org/name", "--space", "org/page"],
        ["push", "--space", "org/page"],
    ]
    with HubServer(tmp_path / "hub") as hub:
        hub.add("org/old", {"README.md": b"---\nsdk: gradio\n---\nMine\n"}, kind="spaces")
        said = scenario(hub, tmp_path / "home", "commands", *map(json.dumps, lines), HF_TOKEN=WRITE_TOKEN)
        out = [answer["output"] for answer in said]
        assert [answer["status"] for answer in said] == [0, 0, 0, 1, 1, 2, 2], said
        assert "index.html" in out[0]
        assert out[1].startswith("org/page: pushed")
        assert out[2] == "org/page: up to date\n"
        files = hub.repository("org/page", "spaces").files()
        assert set(files) == {"README.md", "index.html"}
        assert files["index.html"] == (tmp_path / "page/index.html").read_bytes()
        assert b"\nsdk: static\n" in files["README.md"]
        assert "sdk: gradio" in out[3]
        assert set(hub.repository("org/old", "spaces").files()) == {"README.md"}
        assert "holds no page: index.html and README.md missing" in out[4]

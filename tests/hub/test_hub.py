"""Push and pull with the real clients against ``hub_server.py``, in processes with an environment of their own."""

import json
import re
import subprocess

import preloaded
import pytest
import timm
import torch
from hub_process import RUN, RUN_FILES, finish, scenario, start
from hub_scenarios import KINDS, WRAPPINGS
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from safetensors.torch import load as load_safetensors

import adder_zoo
from adder_zoo import hub as adder_hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


# ---- the same network on the other side


@pytest.mark.parametrize("which", ["adder_lenet5_bn", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.long
def test_a_fresh_process_gets_the_same_logits(tmp_path, which):
    with HubServer(tmp_path / "hub") as hub:
        pushed = scenario(hub, tmp_path / "one", "push_networks", tmp_path, which, HF_TOKEN=WRITE_TOKEN)
        assert len(pushed) == len(WRAPPINGS) * (2 if which == "all" else 1) + (2 if which == "all" else 3)
        for repo_id, (_, keys) in pushed.items():
            repository = hub.repository(repo_id)
            (commit,) = repository.history()
            files = repository.files()
            assert set(files) == {"README.md", "config.json", "model.safetensors", "notebook.ipynb"}
            assert sorted(load_safetensors(files["model.safetensors"])) == sorted(keys)
            assert not any("_orig_mod" in key or "module." in key for key in keys)
            assert commit["tree"]["model.safetensors"]["lfs"] == (repo_id != "org/within-the-commit")
        same = scenario(hub, tmp_path / "two", "pull_networks", tmp_path, json.dumps(pushed))
        assert same == dict.fromkeys(pushed, True)


# ---- pushing


@pytest.fixture(scope="module")
def pushes(hub, tmp_path_factory):
    return scenario(hub, tmp_path_factory.mktemp("pushes"), "pushes", RUN, HF_TOKEN=WRITE_TOKEN)


def test_life_of_a_repository(hub, pushes):
    said = pushes["life"]
    repository = hub.repository("org/life")
    assert repository.meta["private"] is True
    assert said["first"][0] is True
    assert said["again"] == [False, said["first"][1]]
    ours, *later = reversed(repository.history())
    assert ours["summary"] == "Ours"
    assert set(ours["tree"]) == RUN_FILES
    for name in RUN_FILES & {path.name for path in RUN.iterdir()}:
        assert repository.content(ours["tree"][name]["sha256"]) == (RUN / name).read_bytes()

    files, changed, url, calls = said["dry"]
    assert set(files) == RUN_FILES
    assert files["model.safetensors"] == (RUN / "model.safetensors").stat().st_size
    assert [changed, url, calls] == [None, None, []]

    # The card was edited by hand: a licence, a language and a section of its own. The push after it changes nothing.
    assert [c["summary"] for c in later] == ["Upload README.md with huggingface_hub"]
    assert said["edited"] is False
    card = repository.files()["README.md"].decode()
    assert "license: mit\nlanguage: en" in card
    assert card.endswith("\n## By hand\n")

    # A branch starts where main is; what is pushed there stays there.
    assert said["branch"] is False
    assert said["branch again"] is True
    assert set(repository.refs) == {"main", "next", "refs/pr/1"}
    assert repository.files("next")["model.safetensors"] != repository.files()["model.safetensors"]
    assert repository.files("next")["README.md"].decode().endswith("\n## By hand\n")
    assert said["pull request"].endswith("/org/life/discussions/1")
    assert repository.files("refs/pr/1")["model.safetensors"] == repository.files("next")["model.safetensors"]
    assert len(repository.history()) == 2


def test_what_is_not_pushed_says_why(hub, pushes):
    said = pushes["refused"]
    expected = {
        "name": ("ValueError", "organisation/name"),
        "odd name": ("ValueError", "not the name of a repository"),
        "no run": ("ValueError", "no finished run: config.json"),
        "read only": ("HubError", "hf auth login.*write permission.*--create-pr"),
        "wrong token": ("HubError", "does not take this token.*hf auth login"),
        "token with a line break": ("HubError", "line break.*copy it again"),
        "results twice": ("ValueError", "results.json of its own"),
        "not of the zoo": ("ValueError", "adder_resnet18"),
        "not of timm": ("ValueError", "was not built by timm"),
        "other twin": ("ValueError", "not trained alike"),
    }
    assert set(said) == set(expected)
    for what, (kind, pattern) in expected.items():
        assert said[what], f"{what}: was pushed"
        assert said[what]["type"] == kind, what
        assert re.search(pattern, said[what]["message"], re.S), (what, said[what]["message"])
        assert "TokenOfTheTests" not in said[what]["printed"], what
    assert not (hub.folder / "models/org/refused").exists()


def test_no_token(hub, pushes):
    (said,) = pushes["no token"]
    assert said["status"] == 1
    assert "hf auth login" in said["output"]
    assert "HF_TOKEN" in said["output"]
    assert not (hub.folder / "models/org/nobody").exists()


def test_a_card_that_changes_meanwhile_is_not_overwritten(hub, pushes):
    said = pushes["race"]
    assert "run it again" in said["error"]["message"]
    assert said["again"] is None
    card = hub.repository("org/race").files()["README.md"].decode()
    assert card.startswith("---\n")
    assert "theirs\n\n<!-- adder_zoo:begin" in card


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("times", "which"),
    [(1, "one"), pytest.param(1, "every", marks=SLOW), pytest.param(1000, "every", marks=SLOW)],
    ids=["once, one at each", "once", "for good"],
)
@pytest.mark.long
def test_every_fault_at_every_call_of_a_push(tmp_path, times, which):
    with HubServer(tmp_path / "hub") as hub:
        settings = {"HF_TOKEN": WRITE_TOKEN, "TALKATIVE": "1"}
        outcomes = scenario(hub, tmp_path / "home", "push_faults", RUN, times, which, **settings)
        calls = {re.sub(r"[0-9a-f]{40,}", "HASH", outcome["call"]) for outcome in outcomes}
        parts = (
            "repos/create", "branch/next", "GET /api/models", "HEAD", "GET /org", "validate-yaml", "preupload/main",
            "objects/batch", "PUT /_lfs", "commit/main",
        )  # fmt: skip
        for part in parts:
            assert any(part in call for call in calls), f"no push made the call {part}"
        assert len(outcomes) >= len(KINDS) * len(parts) // (1 if which == "every" else len(KINDS))
        assert {o["kind"] for o in outcomes} == set(KINDS)
        struck = {o["kind"] for o in outcomes if o["error"]}
        assert struck >= {"401", "403", "404", "stall"}, "faults were not noticed"
        for outcome in outcomes:
            check_error(outcome)
            assert outcome["second"] is None, outcome
            repository = hub.repository(outcome["repo_id"])
            history = repository.history(outcome["branch"] or "main")
            assert history, outcome
            newest = repository.files(outcome["branch"] or "main")
            assert set(newest) == RUN_FILES, outcome
            assert newest["model.safetensors"] == (RUN / "model.safetensors").read_bytes()
            for commit in history:  # each of them is whole
                assert {"README.md", "config.json", "model.safetensors"} <= set(commit["tree"])
                load_safetensors(repository.content(commit["tree"]["model.safetensors"]["sha256"]))
            assert len(history) <= 2
            # What was done although the answer was lost is not done again.
            if outcome["kind"] == "lost" and "/commit/" in outcome["call"] and times == 1:
                assert outcome["error"]
                assert outcome["changed"] is False


def check_error(outcome):
    """An error that says what to do, in time; or none, for what may be tried again or does no harm."""
    where = (outcome["call"], outcome["kind"], outcome["error"])
    assert outcome["seconds"] < 20, where
    if outcome["error"] is None:
        return
    said = outcome["error"]["message"]
    words = {
        "401": "hf auth login", "403": "hf auth login", "404": "check the name", "429": "rate limit|try again",
        "500": "try again", "cut": "try again", "lost": "try again", "stall": "does not answer|try again",
        "checksum": "damaged|check the name|run it again|The Hub|cannot be reached",
    }[outcome["kind"]]  # fmt: skip
    assert re.search(words, said), where
    assert "Token" not in outcome["error"]["printed"], where


# ---- pulling


@pytest.fixture(scope="module")
def stocked(hub):
    """Repositories to pull from, made without a client."""
    folder = hub.folder.parent / "stock"

    def files(name, seed, **kwargs):
        torch.manual_seed(seed)
        target = adder_hub.save_pretrained(timm.create_model(name, **kwargs), folder / f"{name}-{seed}")
        return {path.name: path.read_bytes() for path in target.iterdir()}

    hub.add("org/public", files("adder_lenet5_bn", 1))
    hub.repository("org/public").point("first", hub.repository("org/public").refs["main"])
    hub.add("org/public", files("adder_lenet5_bn", 2))
    hub.add("org/private", files("adder_lenet5_bn", 3), private=True)
    hub.add("zoo/adder_resnet32.cifar10", files("adder_resnet32", 4))
    hub.add("zoo/adder_resnet44.cifar10", files("adder_resnet20", 5))
    hub.add("zoo/adder_resnet56.cifar10", files("adder_resnet56", 6, similarity="conv"))
    return hub


class Trace:
    """Unpickles into a file that appears."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def with_pickles(folder, trace):
    """Repositories that try to have a pickle read, each in its way; what it would run leaves ``trace``."""
    torch.save({"layer": Trace(trace)}, folder / "evil.bin")
    evil = (folder / "evil.bin").read_bytes()
    torch.load(folder / "evil.bin", weights_only=False)
    assert trace.exists(), "the pickle leaves no trace, so the test would tell nothing"
    trace.unlink()
    torch.save(timm.create_model("adder_lenet5_bn").state_dict(), folder / "good.bin")
    good = (folder / "good.bin").read_bytes()
    config = json.loads((RUN / "config.json").read_text())

    def with_cfg(**cfg):
        return json.dumps({**config, "pretrained_cfg": {**config["pretrained_cfg"], **cfg}}).encode()

    elsewhere = with_cfg(url="http://127.0.0.1:9/e.pth", file=str(folder / "evil.bin"))
    return {
        "org/only-a-pickle": {"config.json": with_cfg(), "pytorch_model.bin": evil},
        "org/harmless-pickle": {"config.json": with_cfg(), "pytorch_model.bin": good},
        "org/named-pickle": {"config.json": with_cfg(hf_hub_filename="evil.bin"), "evil.bin": evil},
        "org/custom-load": {"config.json": with_cfg(custom_load="hf", hf_hub_filename="e.npz"), "e.npz": evil},
        "org/disguised": {"config.json": with_cfg(), "model.safetensors": evil},
        "org/other-place": {"config.json": elsewhere},
        "org/in-the-configuration": {"config.json": with_cfg(state_dict={"a": 1}), "pytorch_model.bin": evil},
    }


@pytest.fixture(scope="module")
def pulls(stocked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pulls")
    pickles = with_pickles(folder, folder / "trace")
    for repo_id, files in pickles.items():
        stocked.add(repo_id, files)
    said = scenario(stocked, folder / "home", "pulls", "org/public", "org/private", *pickles)
    return {"said": said, "home": folder / "home", "trace": folder / "trace"}


def test_ways_to_pull(stocked, pulls):
    said = pulls["said"]["ways"]
    assert said["revisions differ"] is True
    assert said["fine-tuning"] == [True, [2, 3]]
    assert [f[1] for f in said["features"]] == [6, 16, 120]
    assert said["origin"] == ["hf-hub", "org/public", None]
    for what, words in {
        "no repository": "org/none: fetching config.json failed.*hf auth login",
        "no repository, timm": "org/none/resolve/main/config.json",
        "no revision": "org/public: fetching config.json failed.*not that revision",
        "private": "hf auth login",
        "wrong token": "hf auth login",
        "other similarity": "mean nothing to",
        "without organisation": "adder_resnet32.cifar10 has no.*recipes/.*import.*local-dir:.*hf-hub:.*_HUB_ORG",
        "organisation, missing": "zoo/adder_resnet110.cifar10: fetching config.json failed",
        "organisation, other network": "weights of 'adder_resnet20'",
        "organisation, twin": "similarity='conv'",
    }.items():
        assert said[what], f"{what}: no error"
        assert re.search(words, said[what]["message"], re.S), (what, said[what]["message"])
        assert "TokenOfTheTests" not in said[what]["printed"]
    for what in ("private with token", "organisation, asked for twin", "bundled"):
        assert said[what] is None, said[what]
    assert said["organisation"] == [[], True]

    # The same cache, without a network.
    said = scenario(stocked, pulls["home"], "pull_cached", "org/public", HF_HUB_OFFLINE="1")
    assert said["cached"] is None
    assert "HF_HUB_OFFLINE" in said["missing"]["message"]


@pytest.mark.parametrize(
    ("times", "which"),
    [(1, "third"), pytest.param(1, "every", marks=SLOW), pytest.param(1000, "every", marks=SLOW)],
    ids=["once, every third", "once", "for good"],
)
def test_every_fault_at_every_call_of_a_pull(stocked, home, times, which):
    settings = {"HF_TOKEN": READ_TOKEN, "TALKATIVE": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    outcomes = scenario(stocked, home, "pull_faults", "org/public", times, which, **settings)
    calls = {(o["call"].split()[0], o["call"].rpartition("/")[2]) for o in outcomes}
    assert calls == {(method, name) for method in ("HEAD", "GET") for name in ("config.json", "model.safetensors")}
    assert len(outcomes) >= len(calls) * (len(KINDS) if which == "every" else len(KINDS) // 3)
    failed = [o for o in outcomes if o["error"]]
    assert failed, "no fault was noticed"
    for outcome in outcomes:
        check_error(outcome)
        assert outcome["same"] is not False, outcome
        assert outcome["error"] or outcome["same"], outcome
        assert outcome["second"] is None, outcome
        assert outcome["second same"] is True, outcome
    if which != "every":
        return
    found = {(o["kind"], o["call"].split()[0], bool(o["error"])) for o in outcomes}
    assert ("checksum", "GET", times == 1) not in found  # damage is mended by one more try
    assert ("checksum", "GET", times > 1) in found
    assert ("stall", "GET", False) not in found  # that took all the patience that there is


def test_damage_in_the_cache_is_mended(pulls):
    said = pulls["said"]["damaged"]
    assert said["same"] is True
    assert re.search("org/public: config.json was damaged.*run the same again", said["config"]["message"])
    assert said["again"] is True


def test_the_http_client_of_the_process_is_left_alone(stocked, home):
    said = scenario(stocked, home, "client_of_the_user", "org/public", RUN, HF_TOKEN=WRITE_TOKEN)
    assert len(said["requests"]) > 8
    assert said["requests"] == [[True, None]] * len(said["requests"])
    assert said["client"] == "watched"


def test_import_changes_nothing_of_other_packages():
    """Every attribute of timm's, huggingface_hub's and torch's modules and classes is what it was."""
    code = """
import sys, types, timm, torch, huggingface_hub, huggingface_hub.file_download, huggingface_hub.hf_api
import timm.models._hub, timm.optim, timm.data, torch._dynamo, torch.fx, torch.utils.flop_counter, safetensors.torch
OURS = ("timm", "torch", "huggingface_hub", "safetensors", "httpx", "httpx2")

def attributes():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in OURS and isinstance(module, types.ModuleType):
            for key, value in list(vars(module).items()):
                if key == "__warningregistry__":
                    continue
                found[name, key] = value
                if isinstance(value, type) and value.__module__ == name:
                    found.update({(name, key, k): v for k, v in vars(value).items()})
    return found

before = attributes()
import adder_zoo
from huggingface_hub import get_session
after = attributes()
changed = [key for key, value in before.items() if after.get(key, before) is not value and key[1] != "_GLOBAL_CLIENT"]
print(len(before), changed, [len(h) for h in get_session().event_hooks.values()])
"""
    out = subprocess.run([*preloaded.python(), "-c", code], capture_output=True, text=True, check=True).stdout.split(
        " ", 1
    )
    assert int(out[0]) > 20_000
    assert out[1] == "[] [1, 0]\n"


def test_no_pickle_is_read(pulls):
    for repo_id, error in pulls["said"]["pickles"].items():
        assert error, f"{repo_id} was loaded"
        pattern = "damaged" if repo_id == "org/disguised" else "pickle can run code"
        assert re.search(pattern, error["message"]), (repo_id, error["message"])
    assert not pulls["trace"].exists(), "a pickle was run"


def test_no_pickle_in_a_file_or_a_folder_is_read(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"layer": Trace(trace)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((RUN / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="Only safetensors are loaded"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    file = {"file": str(tmp_path / "pytorch_model.bin")}
    with pytest.raises(ValueError, match="pickle can run code"):
        timm.create_model("adder_lenet5_bn", pretrained=True, pretrained_cfg_overlay=file)
    assert not trace.exists(), "a pickle was run"


# ---- waiting


@pytest.mark.slow
def test_nothing_waits_for_more_than_a_minute(tmp_path, stocked):
    """With the package's own patience and huggingface_hub's own waiting, all at once."""
    servers = []

    def run(name, pattern, kind, *args, seconds=1.0):
        hub = HubServer(tmp_path / f"hub{len(servers)}").__enter__()
        servers.append(hub)
        files = {path.name: path.read_bytes() for path in RUN.iterdir()}
        hub.add("org/public", files)
        hub.fault(pattern, kind, 1000, seconds)
        return start(hub, tmp_path / f"home{len(servers)}", name, *args, HF_TOKEN=WRITE_TOKEN)

    push = json.dumps(["push", str(RUN), "org/new"])
    pull = json.dumps(["export", "hf-hub:org/public", "-o", str(tmp_path / "net.pt2")])
    started = {
        "pull, HEAD": run("commands", "HEAD .*config.json", "stall", pull),
        "pull, GET": run("pickles", "GET .*model.safetensors", "stall", "org/public"),
        "pull, 429": run("commands", "HEAD", "429", pull, seconds=3600),
        "pull, 500": run("commands", "HEAD", "500", pull),
        "push, create": run("commands", "POST .*create", "stall", push),
        "push, PUT": run("commands", "PUT", "stall", push),
        "push, commit": run("commands", "POST .*commit", "stall", push),
        "push, 429": run("commands", "POST .*preupload", "429", push, seconds=15),
    }
    said = {what: finish(process) for what, process in started.items()}
    for hub in servers:
        hub.__exit__()
    for what, answer in said.items():
        told = answer["org/public"] if what == "pull, GET" else answer[0]
        message = told["message"] if what == "pull, GET" else told["output"]
        assert re.search("try again|does not answer|rate limit", message), (what, message)
        assert told["seconds"] < 60, (what, told)


def test_dead_server(tmp_path):
    with HubServer(tmp_path / "hub") as hub:
        pass
    push = start(hub, tmp_path / "one", "commands", json.dumps(["push", str(RUN), "org/x"]), HF_TOKEN=WRITE_TOKEN)
    (said,) = finish(push)
    assert said["status"] == 1
    assert "cannot be reached" in said["output"]
    assert said["seconds"] < 60


def test_public_names():
    assert adder_zoo.push_to_hub is adder_hub.push_to_hub
    assert "push_to_hub" in adder_zoo.__all__

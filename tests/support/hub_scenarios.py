"""What the tests of the Hub run in processes of their own: huggingface_hub reads its environment when it is imported.

    python tests/support/hub_scenarios.py NAME ARGUMENTS...  prints what NAME returns as the last line, as JSON

Not a test module. A process that makes many calls goes on quickly: it waits a moment where huggingface_hub would wait
for seconds, and its patience is short.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from pathlib import Path

import timm
import torch
from click.testing import CliRunner
from torch import nn

import adder_zoo
from adder_zoo.cli import main as command_line
from adder_zoo.cli._common import create
from adder_zoo.cli.push import _push_kernels
from adder_zoo.hub import cards, kernel_project, patience, snippets
from adder_zoo.hub import push as pushing
from adder_zoo.hub.records import shipped

ENDPOINT = os.environ.get("HF_ENDPOINT", "")
SIZES = {"adder_lenet5_bn": (1, 32, 32), "adder_resnet20": (3, 32, 32), "adder_resnet50": (3, 64, 64)}
KINDS = ("401", "403", "404", "429", "500", "cut", "lost", "checksum", "slow", "stall")


def hurry() -> None:
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.02))
    patience.PATIENCE = 0.6


def know_the_network() -> None:
    """Finds out once what a card tells of operations and shapes, where all pushes are of the same network."""

    def once(function):
        known = {}

        def remembered(folder, *args):
            of = args[-1:]  # the similarity, or what to find shapes of
            if of not in known:
                known[of] = function(folder, *args)
            return known[of]

        return remembered

    cards.counts, snippets._shapes = once(cards.counts), once(snippets._shapes)


def server(path: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{ENDPOINT}{path}", data)) as answer:
        return json.load(answer)


def set_fault(pattern: str, kind: str, times: int = 1, seconds: float = 1.0) -> None:
    server("/_faults", [{"pattern": pattern, "kind": kind, "times": times, "seconds": seconds}])


def attempt(function, *args, **kwargs):
    """(what it returned, None), or (None, its error and all that would be printed of it); and the seconds it took."""
    began = time.monotonic()
    try:
        return function(*args, **kwargs), None, time.monotonic() - began
    except Exception as error:
        seconds = time.monotonic() - began
        said = {"type": type(error).__name__, "message": str(error), "printed": traceback.format_exc()}
        return None, {**said, "seconds": seconds}, seconds


def network(name: str, seed: int = 0) -> nn.Module:
    """A network with random weights, and statistics of batch norm that differ from a new one's."""
    torch.manual_seed(seed)
    model = timm.create_model(name).train()
    for _ in range(2):
        model(torch.randn(2, *SIZES[name]))
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, name: str) -> torch.Tensor:
    x = torch.randn(2, *SIZES[name], generator=torch.Generator().manual_seed(1))
    return model.eval()(x)


# ---- the same network on the other side


def wrapped(model: nn.Module, how: str) -> nn.Module:
    from accelerate import Accelerator
    from torch.nn.parallel import DistributedDataParallel

    if how == "channels_last":
        return model.to(memory_format=torch.channels_last)
    if how == "compiled":
        return torch.compile(model)
    if how == "partly compiled":
        parts = [name for name, child in model.named_children() if isinstance(child, nn.Sequential)]
        setattr(model, parts[0], torch.compile(getattr(model, parts[0])))
        return model
    if how == "accelerate":
        return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    if how in ("ddp", "compiled ddp"):
        model = DistributedDataParallel(model)
        return torch.compile(model) if how == "compiled ddp" else model
    return model


WRAPPINGS = ("plain", "channels_last", "compiled", "partly compiled", "accelerate", "ddp", "compiled ddp")


def push_networks(folder: str, which: str) -> dict:
    """All wrappings of LeNet, and of ResNet-20 if ``which`` is "all"; other networks as they are."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    pushed = {}
    for name in SIZES:
        for how in WRAPPINGS if which in (name, "all") and name != "adder_resnet50" else ("plain",):
            model = network(name)
            repo_id = f"org/{name}-{how.replace(' ', '-')}"
            torch.save(logits(model, name), Path(folder) / f"{repo_id.replace('/', '--')}.pt")
            keys = list(model.state_dict())
            adder_zoo.push_to_hub(wrapped(model, how), repo_id)
            pushed[repo_id] = [name, keys]
    server("/_upload_mode", "regular")  # small files go up within the commit
    model, repo_id = network("adder_lenet5_bn"), "org/within-the-commit"
    torch.save(logits(model, "adder_lenet5_bn"), Path(folder) / f"{repo_id.replace('/', '--')}.pt")
    adder_zoo.push_to_hub(model, repo_id)
    return {**pushed, repo_id: ["adder_lenet5_bn", list(model.state_dict())]}


def pull_networks(folder: str, pushed: str) -> dict:
    """Whether each network answers with the same logits, bit by bit."""
    same = {}
    for repo_id, (name, _) in json.loads(pushed).items():
        model = timm.create_model(f"hf-hub:{repo_id}", pretrained=True)
        want = torch.load(Path(folder) / f"{repo_id.replace('/', '--')}.pt")
        same[repo_id] = torch.equal(logits(model, name), want)
    return same


# ---- pushing


def push_calls(run: str) -> dict:
    """One repository through its life: made, pushed again, its card edited, a branch, a pull request."""
    said = {}
    first = adder_zoo.push_to_hub(run, "org/life", private=True, commit_message="Ours")
    again = adder_zoo.push_to_hub(run, "org/life")
    said["first"], said["again"] = [first.changed, first.url], [again.changed, again.url]
    server("/_calls")
    dry = adder_zoo.push_to_hub(run, "org/other", dry_run=True)
    said["dry"] = [dry.files, dry.changed, dry.url, server("/_calls")]
    api = pushing.HfApi()
    card = first.card.replace("license: apache-2.0", "license: mit\nlanguage: en")
    api.upload_file(path_or_fileobj=f"{card}\n## By hand\n".encode(), path_in_repo="README.md", repo_id="org/life")
    said["edited"] = adder_zoo.push_to_hub(run, "org/life").changed
    said["branch"] = adder_zoo.push_to_hub(run, "org/life", revision="next").changed
    model = network("adder_lenet5_bn")
    said["branch again"] = adder_zoo.push_to_hub(model, "org/life", revision="next").changed
    said["pull request"] = adder_zoo.push_to_hub(model, "org/life", create_pr=True).url
    return said


def pushes(run: str) -> dict:
    """Everything about pushing that needs no fault, in one process."""
    said = {"life": push_calls(run), "race": race(run), "refused": push_refused(run)}
    del os.environ["HF_TOKEN"]
    said["no token"] = commands(json.dumps(["push", run, "org/nobody"]))
    return said


def push_refused(run: str) -> dict:
    """Errors that need no fault: of each, the type and the message."""
    said = {}

    def refused(what: str, *args, **kwargs) -> None:
        _, error, _ = attempt(adder_zoo.push_to_hub, *args, **kwargs)
        said[what] = error

    refused("name", run, "no-organisation")
    refused("odd name", run, "org/with spaces")
    refused("no run", Path(run).parent, "org/refused")
    refused("read only", run, "org/refused", token=os.environ["READ_TOKEN"])
    refused("wrong token", run, "org/refused", token="hf_wrongTokenOfTheTests")
    refused("token with a line break", run, "org/refused", token="hf_wrong\nTokenOfTheTests")
    refused("results twice", run, "org/refused", results={})
    converted = adder_zoo.convert_to_adder(timm.create_model("resnet18", num_classes=10), lambda name, _: True)
    refused("not of the zoo", converted, "org/refused")
    refused("not of timm", nn.Linear(1, 1), "org/refused")
    other = json.loads((Path(run) / "results.json").read_text())
    refused("other twin", run, "org/refused", twin={**other, "similarity": "conv", "epochs": 1})
    return said


def race(run: str) -> dict:
    """Somebody edits the card between our reading it and our commit."""
    adder_zoo.push_to_hub(run, "org/race")
    api, merge = pushing.HfApi(), pushing.merge

    def slow_merge(*args):
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo="README.md", repo_id="org/race")
        return merge(*args)

    pushing.merge = slow_merge
    said = attempt(adder_zoo.push_to_hub, run, "org/race")[1]
    pushing.merge = merge
    return {"error": said, "again": attempt(adder_zoo.push_to_hub, run, "org/race")[1]}


def push_faults(run: str, times: str, every: str) -> list:
    """Every fault at every call of a push, or one of them at each; then the same push without it."""
    hurry()
    know_the_network()
    numbers = itertools.count()
    server("/_calls")
    adder_zoo.push_to_hub(run, "org/clean")
    adder_zoo.push_to_hub(run, "org/clean", revision="next")
    # The second push adds two calls: the branch is made, and the card that is there is read.
    calls = list(dict.fromkeys(re.sub(r"[0-9a-f]{40,}", "HASH", call) for call in server("/_calls")))
    calls = [call for call in calls if "agent" not in call and ("next" not in call or "branch" in call)]
    outcomes = []
    for i, call in enumerate(calls):
        method, _, path = call.partition(" ")
        branch = "next" if "next" in path or "/branch/" in path else None
        for kind in KINDS if every == "every" else [KINDS[(i - 2) % len(KINDS)]]:  # the commit's answer is lost
            repo_id = f"faults/n{next(numbers)}"
            pattern = path.replace("org/clean", repo_id)
            for part, any_of_it in (("_lfs", "_lfs/"), ("resolve", f"{repo_id}/resolve/.*{path.rpartition('/')[2]}")):
                pattern = any_of_it if part in path else pattern
            if branch or "resolve" in path:
                adder_zoo.push_to_hub(network("adder_lenet5_bn"), repo_id)
            set_fault(f"^{method} .*{pattern.lstrip('/')}", kind, int(times), 0.2)
            _, error, seconds = attempt(adder_zoo.push_to_hub, run, repo_id, revision=branch)
            struck = server("/_calls")
            server("/_faults", [])
            second, failed, _ = attempt(adder_zoo.push_to_hub, run, repo_id, revision=branch)
            outcomes.append(
                {
                    "call": call, "kind": kind, "repo_id": repo_id, "branch": branch, "error": error, "struck": struck,
                    "seconds": seconds, "second": failed, "changed": second and second.changed,
                }
            )  # fmt: skip
    return outcomes


# ---- pulling


def pull(repo_id: str, cache: str | None = None, **kwargs):
    return timm.create_model(f"hf-hub:{repo_id}", pretrained=True, cache_dir=cache, **kwargs)


def pull_by_command(repo_id: str, cache: str | None):
    """As the command line does, which fetches config.json itself; in Python timm does, before this package is asked."""
    return create(f"hf-hub:{repo_id}", pretrained=True, cache_dir=cache)


def pull_faults(repo_id: str, times: str, every: str) -> list:
    """Every fault at every call of a pull, or every third of these; then the same pull without it, same cache."""
    hurry()
    server("/_calls")
    want = logits(pull_by_command(repo_id, tempfile.mkdtemp()), "adder_lenet5_bn")
    calls = [call for call in dict.fromkeys(server("/_calls")) if "agent" not in call]
    outcomes = []
    for i, call in enumerate(calls):
        method, name = call.split()[0], call.rpartition("/")[2]
        for kind in KINDS if every == "every" else KINDS[i % 3 :: 3]:
            cache = tempfile.mkdtemp()
            set_fault(f"^{method} .*{name}", kind, int(times), 0.2)
            model, error, seconds = attempt(pull_by_command, repo_id, cache)
            server("/_faults", [])
            same = None if model is None else torch.equal(logits(model, "adder_lenet5_bn"), want)
            for thread in threading.enumerate():  # a call that was given up holds the lock of its file until it ends
                if thread.name == "adder_zoo.hub":
                    thread.join()
            second, failed, _ = attempt(pull_by_command, repo_id, cache)
            outcomes.append(
                {
                    "call": call, "kind": kind, "error": error, "seconds": seconds, "same": same, "second": failed,
                    "second same": second is not None and torch.equal(logits(second, "adder_lenet5_bn"), want),
                }
            )  # fmt: skip
    return outcomes


def pull_ways(public: str, private: str) -> dict:
    """Revisions, another number of classes, the organisation's setting, private repositories."""
    said: dict = {}
    first = pull(f"{public}@first")
    newest = pull(public)
    weight = "stages.0.conv.weight"
    said["revisions differ"] = not torch.equal(first.state_dict()[weight], newest.state_dict()[weight])
    tuned = pull(public, num_classes=3)
    said["fine-tuning"] = [
        torch.equal(tuned.state_dict()[weight], newest.state_dict()[weight]),
        list(tuned(torch.randn(2, 1, 32, 32)).shape),
    ]
    said["features"] = [list(f.shape) for f in pull(public, features_only=True)(torch.randn(2, 1, 32, 32))]
    said["origin"] = [newest.pretrained_cfg[key] for key in ("source", "hf_hub_id", "file")]
    for what, repo_id in (("no repository", "org/none"), ("no revision", f"{public}@none"), ("private", private)):
        said[what] = attempt(pull_by_command, repo_id, None)[1]
    said["no repository, timm"] = attempt(pull, "org/none")[1]
    os.environ["HF_TOKEN"] = os.environ["READ_TOKEN"]
    said["private with token"] = attempt(pull, private)[1]
    os.environ["HF_TOKEN"] = "hf_wrongTokenOfTheTests"
    said["wrong token"] = attempt(pull_by_command, private, tempfile.mkdtemp())[1]
    del os.environ["HF_TOKEN"]
    said["other similarity"] = attempt(pull, public, similarity="conv")[1]

    said["without organisation"] = attempt(timm.create_model, "adder_resnet32", pretrained=True)[1]
    os.environ["ADDER_ZOO_HUB_ORG"] = "zoo"
    listed = timm.list_pretrained("adder_resnet32*")
    model = timm.create_model("adder_resnet32", pretrained=True, num_classes=7)
    said["organisation"] = [listed, torch.equal(model.conv1.weight, pull("zoo/adder_resnet32.cifar10").conv1.weight)]
    said["organisation, missing"] = attempt(timm.create_model, "adder_resnet110", pretrained=True)[1]
    said["organisation, other network"] = attempt(timm.create_model, "adder_resnet44", pretrained=True)[1]
    said["organisation, twin"] = attempt(timm.create_model, "adder_resnet56", pretrained=True)[1]
    said["organisation, asked for twin"] = attempt(
        timm.create_model, "adder_resnet56", pretrained=True, similarity="conv"
    )[1]
    said["bundled"] = attempt(timm.create_model, "adder_lenet5_bn.mnist", pretrained=True)[1]
    return said


def pulls(public: str, private: str, *with_pickles: str) -> dict:
    """Everything about pulling that needs no fault, in one process."""
    said = {"damaged": damaged_cache(public), "pickles": pickles(*with_pickles)}
    return {**said, "ways": pull_ways(public, private)}


def pull_cached(repo_id: str) -> dict:
    """In a process of its own, offline or with a server that is gone."""
    cached = attempt(pull, repo_id)
    missing = attempt(pull_by_command, "org/none", None)
    return {"cached": cached[1], "seconds": cached[2], "missing": missing[1]}


def damaged_cache(repo_id: str) -> dict:
    """A file in the cache that has changed on the disk is fetched again."""
    cache = tempfile.mkdtemp()
    want = logits(pull(repo_id, cache), "adder_lenet5_bn")
    for stored in Path(cache).rglob("blobs/*"):
        data = bytearray(stored.read_bytes())
        data[len(data) // 2] ^= 1
        stored.write_bytes(data)
    mended = torch.equal(logits(pull_by_command(repo_id, cache), "adder_lenet5_bn"), want)
    # timm reads a config.json that says something else, and would not know.
    (stored,) = (path for path in Path(cache).rglob("blobs/*") if path.read_bytes().startswith(b"{"))
    stored.write_bytes(stored.read_bytes().replace(b"0.1307", b"0.1407").replace(b"0.286", b"0.287"))
    other = attempt(pull, repo_id, cache)[1]
    again = torch.equal(logits(pull(repo_id, cache), "adder_lenet5_bn"), want)
    return {"same": mended, "config": other, "again": again}


def pickles(*repositories: str) -> dict:
    return {repo_id: attempt(pull, repo_id)[1] for repo_id in repositories}


# ---- what is not ours


def client_of_the_user(repo_id: str, run: str) -> dict:
    """The process-wide HTTP client, one of the user's own, while a network is pulled and pushed."""
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    seen = []

    def factory():
        client = default_client_factory()
        before = {what: list(hooks) for what, hooks in client.event_hooks.items()}
        send = client.send

        def watched(*args, **kwargs):
            now = {what: list(hooks) for what, hooks in client.event_hooks.items()}
            seen.append([now == before, client.timeout.read])
            return send(*args, **kwargs)

        client.send = watched
        return client

    huggingface_hub.set_client_factory(factory)
    pull(repo_id, tempfile.mkdtemp())
    adder_zoo.push_to_hub(run, "org/with-a-client-of-the-user")
    return {"requests": seen, "client": huggingface_hub.get_session().send.__name__}


# ---- the command line


def commands(*lines: str) -> list:
    """Runs each line, given as JSON; of each: status and what it printed."""
    said = []
    for line in lines:
        began = time.monotonic()
        result = CliRunner().invoke(command_line, json.loads(line), prog_name="adder-zoo")
        told = {"status": result.exit_code, "output": result.output, "unexpected": repr(result.exception)}
        said.append({**told, "seconds": time.monotonic() - began})
    return said


def commands_of_an_organisation(images: str, *lines: str) -> dict:
    """The commands with ADDER_ZOO_HUB_ORG, with a Hub that does not have what is asked for, and without one."""
    os.environ["ADDER_ZOO_HUB_ORG"] = "zoo"
    said = {"organisation": commands(*lines)}
    server("/_calls")
    said["missing"] = commands(json.dumps(["predict", "adder_resnet110", images]))
    said["missing calls"] = server("/_calls")
    return said


def push_shipped(organisation: str) -> None:
    """The networks of ``adder-zoo push --all``, without what goes up beside them."""
    for name, folder, _, twin in shipped():
        adder_zoo.push_to_hub(folder, f"{organisation}/{name}", twin=twin)


def push_kernels(organisation: str) -> list:
    """The kernels of ``adder-zoo push --all``: to which branch, and whether that changed anything."""
    pushed: list = []
    options = {"private": None, "create_pr": False, "dry_run": False, "commit_message": None}
    _push_kernels(kernel_project.source(), organisation, options, lambda done, to: pushed.append([to, done.changed]))
    return pushed


def use_cards(*cards: str) -> list:
    """Runs the code of each card or notebook in the working directory; of each piece: the code and what it printed."""
    from contextlib import redirect_stdout

    from huggingface_hub import ModelCard

    printed = []
    for path in cards:
        text, names = Path(path).read_text(), {}
        if path.endswith(".ipynb"):
            codes = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        else:
            ModelCard(text).validate()
            codes = [block.split("```")[0] for block in text.split("```python\n")[1:]]
        said = []
        for code in codes:
            out = io.StringIO()
            with redirect_stdout(out):
                exec(compile(code, path, "exec"), names if path.endswith(".ipynb") else {})
            said.append([code, out.getvalue()])
        printed.append(said)
    return printed


if __name__ == "__main__":
    if os.environ.get("TALKATIVE"):
        logging.basicConfig(level=logging.DEBUG)
    torch.set_num_threads(1)
    name = sys.argv[1]  # of a function here, or of a module with a main of its own
    function = globals().get(name) or importlib.import_module(name).main
    result = function(*sys.argv[2:])
    print("\n" + json.dumps(result))

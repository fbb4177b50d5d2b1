"""Runs functions of ``hub_scenarios.py`` in processes with an environment of their own, against a stand-in Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import preloaded
from hub_server import READ_TOKEN, TOKENS

from adder_zoo.paths import WEIGHTS

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
RUN = WEIGHTS / "adder_lenet5_bn.mnist"
RUN_FILES = {
    "README.md", "args.yaml", "config.json", "log.csv", "model.safetensors", "notebook.ipynb", "results.json",
    "results-conv.json", ".eval_results/adder_zoo-mnist.yaml",
}  # fmt: skip


def environment(hub, home, **extra):
    """Nothing of this process that would steer the clients."""
    ours = ("HF_", "HUGGING", "TRANSFORMERS_", "ADDER_ZOO_HUB", "KERNELS_", "LOCAL_KERNELS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.lower().endswith("_proxy")}
    return {
        **clean, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "READ_TOKEN": READ_TOKEN, **extra,
    }  # fmt: skip


def start(hub, home, name, *args, cwd=None, **extra):
    python = [sys.executable] if "TRITON_INTERPRET" in extra else preloaded.python()  # Triton reads it at its import
    command = [*python, str(HERE / "hub_scenarios.py"), name, *map(str, args)]
    env = environment(hub, home, **extra)
    env["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p and "site-packages" not in p)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=cwd)


def finish(process, timeout=500):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    for token in TOKENS:
        assert token not in out, "a token was printed"
        assert token not in err, "a token was printed"
    return json.loads(out.splitlines()[-1])


def scenario(hub, home, name, *args, **extra):
    return finish(start(hub, home, name, *args, **extra))

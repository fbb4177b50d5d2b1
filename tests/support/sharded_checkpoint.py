"""For tests/training/test_checkpoint.py, in two processes: a network in parts (FSDP 2) goes on from a checkpoint."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adder_zoo import Adder2d, AdderSGD
from adder_zoo.training.checkpoint import load_network, load_optimizer, read_state, write_state

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
name = f"state-{dist.get_rank()}"
images, labels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def begin(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(Adder2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4))
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    return network, AdderSGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def step(network, optimizer):
    nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


network, optimizer = begin(0)
step(network, optimizer)
write_state(folder, name, {"network": network.state_dict(), "optimizer": optimizer.state_dict()})
again, optimizer_again = begin(1)
state = read_state(folder, name)
load_network(again, state["network"])
load_optimizer(optimizer_again, state["optimizer"])
for _ in range(2):
    step(network, optimizer)
    step(again, optimizer_again)
for (key, want), got in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
    want, got = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in (want, got))
    assert torch.equal(want, got), key
os.write(1, f"process {dist.get_rank()}: equal\n".encode())  # in one piece: print writes the line's end by itself
dist.barrier()
os._exit(0)  # past the process groups' threads, which sometimes abort the interpreter on its way out

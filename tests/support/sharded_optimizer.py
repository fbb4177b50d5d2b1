"""For test_optim.py, in two processes: AdderSGD on parameters in parts (FSDP 2), whole and flat (FSDP 1) ones."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from adder_zoo import Adder2d, AdderSGD

dist.init_process_group("gloo")
torch.manual_seed(0)
whole = nn.Sequential(
    Adder2d(3, 8, 3, bias=False),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    Adder2d(8, 6, 3, bias=False),
    nn.Flatten(),
    nn.Linear(96, 4),
).eval()
nn.init.constant_(whole[1].bias, 30.0)  # so that ReLU lets distances through
parts = copy.deepcopy(whole)
fully_shard(parts, mesh=init_device_mesh("cpu", (2,)))
options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
networks = [(network, AdderSGD(network.parameters(), **options)) for network in (whole, parts)]
images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
before = copy.deepcopy(whole)
for network, optimizer in networks:
    for _ in range(3):
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
for p, q, first in zip(whole.parameters(), parts.parameters(), before.parameters(), strict=True):
    assert not torch.equal(p, first)
    torch.testing.assert_close(q.full_tensor(), p)
for original in (False, True):  # the optimizer gets the flat parameter itself, or views of this process's piece of it
    flat = FullyShardedDataParallel(copy.deepcopy(before), use_orig_params=original, device_id=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="fully_shard"):
        AdderSGD(flat.parameters(), **options)
    AdderSGD(flat.parameters(), adder_lr="none", **options)
os.write(1, f"process {dist.get_rank()}: equal\n".encode())  # in one piece: print writes the line's end by itself
dist.barrier()
os._exit(0)  # past the process groups' threads, which sometimes abort the interpreter on its way out

"""A small network with adder layers and a loss, for the tests of the optimizer.

Used as a program, one of two processes that share each batch: ``optimizer_runs.py FILE`` writes the parameters.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adder_zoo import Adder2d, AdderLinear, AdderSGD

SUPPORT = Path(__file__).parent


def network(seed=0):
    torch.manual_seed(seed)
    # Group and not batch norm: the gradient of a batch is then the sum of its parts, which accumulation and ranks need.
    return nn.Sequential(
        Adder2d(2, 3, 3),
        nn.GroupNorm(1, 3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.Flatten(),
        AdderLinear(64, 5, bias=False),
    )


def batch(n=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 8, 8, generator=generator), torch.randint(5, (n,), generator=generator)


def loss_of(model, x, y):
    return F.cross_entropy(model(x) / 50, y)


def main(file):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(network())
    optimizer = AdderSGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    for step in range(2):
        x, y = batch(seed=step)
        optimizer.zero_grad()
        loss_of(model, x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4]).backward()
        optimizer.step()
    if rank == 0:
        torch.save([p.detach() for p in model.parameters()], file)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way; that is not what is tested


if __name__ == "__main__":
    main(sys.argv[1])

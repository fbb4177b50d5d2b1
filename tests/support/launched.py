"""For test_launch.py, started by `accelerate launch`: one training step of a small network, and what came of it.

Accelerate leaves FSDP out on CPUs. This makes it take gloo's processes for a GPU's; everything else is unchanged.
"""

import json
import os

import timm
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from adder_zoo import Adder2d, AdderSGD

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = timm.create_model("adder_resnet20", depth=8)
begin = {name: p.detach().clone() for name, p in model.named_parameters()}
model, optimizer = accelerator.prepare(model, AdderSGD(model.parameters(), lr=0.1))
inputs = set()
for layer in accelerator.unwrap_model(model).modules():
    if isinstance(layer, Adder2d):
        layer.register_forward_pre_hook(lambda _, args: inputs.add(str(args[0].dtype)))
images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(accelerator.process_index))
loss = torch.nn.functional.cross_entropy(model(images).float(), torch.arange(4))
accelerator.backward(loss)
optimizer.step()
state = accelerator.get_state_dict(model)
norm = accelerator.unwrap_model(model).bn1
if accelerator.is_main_process:
    moved = [name for name, first in begin.items() if not torch.equal(state[name].cpu(), first)]
    told = {
        "processes": accelerator.num_processes,
        "type": accelerator.distributed_type.value,
        "precision": accelerator.mixed_precision,
        "inputs": sorted(inputs),
        "statistics": str(norm.running_mean.dtype),
        "weights": sorted({str(value.dtype) for value in state.values() if value.is_floating_point()}),
        "finite": bool(loss.isfinite()),
        "still": sorted(set(begin) - set(moved)),
    }
    os.write(1, f"\ntold {json.dumps(told)}\n".encode())
accelerator.wait_for_everyone()
os._exit(0)  # past the process groups' threads, which sometimes abort the interpreter on its way out

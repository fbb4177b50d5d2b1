"""The operator: what it means, what computes it, and how PyTorch sees it.

geometry.py      stride, padding, dilation and groups of a call as one value; the size of its output
library.py       ``torch.ops.adder_zoo.adder2d`` and its two gradients; fused.py: with what follows it at inference
backends.py      which implementations there are, and which one a call takes
reference.py     the definition in plain PyTorch
quadratic.py     what a convolution computes: all of p = 2, and dw
cpu.py           the C++ kernels of ``kernels/cpu/``
triton.py        the GPU kernels of ``kernels/adder2d/``
registration.py, autograd.py, batching.py
                 how an operator is registered, its gradients, and ``torch.vmap``
int8/            the operator on bytes
"""

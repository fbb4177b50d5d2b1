"""For ``kernels benchmark``: the operator and its gradients beside the usual way to write them in plain torch.

A layer of ResNet-50 on a GPU; on a CPU, where the interpreter runs the kernels, a tiny one.
"""

import torch
import torch.nn.functional as F
from kernels.benchmark import Benchmark


class Adder2dBenchmark(Benchmark):
    seed = 0

    def setup(self):
        N, C, H, K = (2, 4, 6, 5) if self.device == "cpu" else (32, 64, 56, 64)
        self.x = torch.randn(N, C, H, H, device=self.device)
        self.w = torch.randn(K, C, 3, 3, device=self.device)
        self.dy = torch.randn(N, K, H, H, device=self.device) / H
        self.geometry = (1, 1), (1, 1, 1, 1), (1, 1), 1

    def setup_forward_channels_last(self):
        self.setup()
        self.x = self.x.contiguous(memory_format=torch.channels_last)

    def setup_forward_float16(self):
        self.setup_forward_channels_last()
        self.x, self.w = self.x.half(), self.w.half()

    def _patches(self):
        return F.unfold(self.x.float(), 3, padding=1).transpose(1, 2)  # [N, PQ, CRS]

    def benchmark_forward(self):
        self.out = self.kernel.adder2d_forward(self.x, self.w, *self.geometry)

    def verify_forward(self):
        y = -torch.cdist(self._patches(), self.w.float().flatten(1), p=1)  # [N, PQ, K]
        return y.transpose(1, 2).reshape(self.dy.shape)

    benchmark_forward_channels_last = benchmark_forward
    verify_forward_channels_last = verify_forward

    def benchmark_forward_float16(self):  # sums of chains in float16, of up to some hundreds
        self.out = self.kernel.adder2d_forward(self.x, self.w, *self.geometry) / 100

    def verify_forward_float16(self):
        return self.verify_forward() / 100

    def benchmark_grad_weight(self):
        self.out = self.kernel.adder2d_grad_weight(self.dy, self.x, self.w, *self.geometry)

    def verify_grad_weight(self):
        d = self.dy.flatten(2)  # [N, K, PQ]
        dw = (d @ self._patches()).sum(0) - d.sum((0, 2)).unsqueeze(1) * self.w.flatten(1)
        return dw.view_as(self.w)

    def benchmark_grad_input(self):
        self.out = self.kernel.adder2d_grad_input(self.dy, self.x, self.w, *self.geometry)

    def verify_grad_input(self):
        x, d = self._patches().transpose(1, 2), self.dy.flatten(2)  # [N, CRS, PQ], [N, K, PQ]
        taps = torch.zeros_like(x)
        for k, w in enumerate(self.w.flatten(1)):  # all at once they would take K times the memory
            taps += d[:, k, None] * (w[:, None] - x).clamp(-1, 1)
        return F.fold(taps, self.x.shape[2:], 3, padding=1)

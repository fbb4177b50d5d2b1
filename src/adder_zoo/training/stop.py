"""Signals that ask a run to end: they are noted, and the loop ends after its next update, with a checkpoint."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from .launch import launcher_arguments

SYNCHRONISE_EVERY = 10  # updates, with several processes


class StopRequest:
    """Whether the run was asked to end, by SIGTERM (a cluster's scheduler) or Ctrl-C; a second one ends it at once.

    ``accelerate launch`` does not pass a signal on to a single process, so that its end counts as a request.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signal = 0
        self.launcher = None if launcher_arguments() is None else os.getppid()
        self._handlers_before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers_before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._handlers_before:
            number, handler = self._handlers_before.popitem()
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore_handlers()

    def should_stop(self, updates: int) -> bool:
        """Whether to end after this update. All processes answer alike, so several wait for up to ten updates."""
        if self.launcher and os.getppid() != self.launcher:
            self.signal = self.signal or signal.SIGTERM
        if self.accelerator.num_processes == 1:
            return bool(self.signal)
        if updates % SYNCHRONISE_EVERY:
            return False
        return bool(self.accelerator.reduce(torch.tensor(float(self.signal), device=self.accelerator.device), "sum"))

    def exit_status(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)

"""Runs a program in two processes that torch.distributed connects, without a launcher."""

import os
import socket
import subprocess

import preloaded


def run_in_two_processes(program, *arguments, timeout=300) -> list[str]:
    """What each of the two prints, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [*preloaded.python(), str(program), *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**shared, "RANK": rank}
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [printed for printed, _ in outputs]

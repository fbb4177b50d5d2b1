"""Starts Python programs that have torch and torchvision already: to import them costs a process about four seconds.

``[*preloaded.python(), "program.py", ...]`` is a command for ``subprocess``, as ``[sys.executable, "program.py", ...]``
is one: files and ``-c``, environment, folder, pipes, exit status and signals work as they do in an ordinary process. A
server imports the two once for each process of pytest, and forks for each program. Use ``sys.executable`` if the test
kills the program, or if torch or Triton reads something of its environment at import.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile

STANDARD = (0, 1, 2)  # stdin, stdout, stderr
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@functools.cache
def python() -> list[str]:
    """The command that stands for ``sys.executable``; starts the server if this process has none yet."""
    folder = tempfile.TemporaryDirectory(prefix="preloaded-")
    address = f"{folder.name}/socket"
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # what is registered last runs first, and this ends the server
    return [sys.executable, "-S", "-E", __file__, "run", address]


def run(address: str, *program: str) -> None:
    """The process that a test starts: hands all that it has to the server, and ends as the program does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = json.dumps([program, dict(os.environ), os.getcwd()]).encode()
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], STANDARD)
        connection.sendall(request)
        pid = int.from_bytes(receive(connection, 8), "big")
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, frame: os.kill(pid, number))
        status = os.waitstatus_to_exitcode(int.from_bytes(receive(connection, 8), "big"))
    if status < 0:  # a signal ended the program
        if -status in FORWARDED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += (part := connection.recv(count - len(data)))
        if not part:
            raise ConnectionError("the process that runs the program is gone")
    return data


def serve(address: str) -> None:
    """Forks for each request until standard input ends."""
    import torchvision  # noqa: F401  # and torch

    assert "huggingface_hub" not in sys.modules  # it reads its environment when it is imported
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        gc.freeze()  # the collector would go through all of torch at the end of each program
        os.write(1, b"ready\n")
        default = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks of this process
        while listener in select.select([listener, 0], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, default)
                listener.close()
                break
            connection.close()
        else:
            return
    start(connection)


def start(connection: socket.socket) -> None:
    """Forks once more: one process becomes the program, the other says how it ended."""
    size, descriptors, _, _ = socket.recv_fds(connection, 8, len(STANDARD))
    program, environment, folder = json.loads(receive(connection, int.from_bytes(size, "big")))
    pid = os.fork()
    if pid:
        connection.sendall(pid.to_bytes(8, "big"))
        for descriptor in (*STANDARD, *descriptors):  # or whoever reads the program's output waits for this process too
            os.close(descriptor)
        connection.sendall(os.waitpid(pid, 0)[1].to_bytes(8, "big"))
        os._exit(0)
    connection.close()
    for standard, descriptor in zip(STANDARD, descriptors, strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    first, *arguments = program
    sys.path[:1] = ["" if first == "-c" else os.path.dirname(os.path.abspath(first))]
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if first == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    {"run": run, "serve": serve}[sys.argv[1]](*sys.argv[2:])

"""A Python that starts at once: a server has imported PyTorch and the project, and every command line is a fork of it,
with the asker's folder, environment, streams and Ctrl-C. An asker that is killed takes its fork with it.

python tests/forked.py FOLDER       makes FOLDER/python, which starts the project's command lines
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from multiprocessing import connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ("train_teacher", "distill", "evaluate", "export", "matplotlib.pyplot")
ASK = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1] == "-c" or sys.argv[1:3] == ["-m", "torch.distributed.run"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.connect({address!r})
socket.send_fds(link, [json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()], [0, 1, 2])
while True:
    try:
        os._exit(int(link.recv(9) or 255) & 255)
    except KeyboardInterrupt:
        link.send(b"interrupt")
"""


def run(streams: list[int], folder: str, environment: dict, words: list[str]) -> None:
    """The command line, in a process of its own."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The server's own still think that they write to what it was started with.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def attend(link: socket.socket) -> None:
    asked, streams, _, _ = socket.recv_fds(link, 1 << 20, 3)
    process = multiprocessing.get_context("fork").Process(target=run, args=(streams, *json.loads(asked)))
    process.start()
    for stream in streams:
        os.close(stream)
    while process.sentinel not in connection.wait([link, process.sentinel]):
        os.kill(process.pid, signal.SIGINT if link.recv(9) else signal.SIGKILL)
    process.join()
    with contextlib.suppress(OSError):  # the asker is gone
        link.send(str(process.exitcode).encode())


def serve() -> None:
    folder = Path(sys.argv[1])
    sys.path[0] = str(ROOT)
    for module in PRELOADED:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    (folder / "python").write_text(ASK.format(python=sys.executable, address=str(folder / "socket")))
    (folder / "python").chmod(0o755)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        link, _ = listener.accept()
        if not os.fork():
            if not os.fork():  # of nobody's care: the server has none to wait for
                listener.close()
                attend(link)
            os._exit(0)
        os.wait()
        link.close()


serve()

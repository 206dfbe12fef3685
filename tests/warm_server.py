"""The process from which the commands of warm_python.py are forked."""

import atexit
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path

from accelerate.commands.accelerate_cli import main as accelerate

import vl_reward.report
import vl_reward.tiny.demo  # noqa: F401


def serve(listener, python):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children here
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            status = answer(connection, python)
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([status]))
            os._exit(status)
        connection.close()


def answer(connection, python):
    size, streams, *_ = socket.recv_fds(connection, 8, 3)
    request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for stream, given in enumerate(streams):
        os.dup2(given, stream)
        os.close(given)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.setdefault("PYTHON_EXEC", sys.executable)  # torchrun starts fresh processes
    sys.executable = python
    connection.sendall(os.getpid().to_bytes(8, "big"))
    try:
        run(*request["command"])
        threading._shutdown()
        atexit._run_exitfuncs()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def run(name, first, *others):
    if name == "accelerate":
        sys.argv = [name, first, *others]
        accelerate()
    elif first == "-m":
        sys.argv = list(others)
        sys.path[0] = os.getcwd()
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *others[1:]]
        sys.path[0] = ""
        exec(others[0], {"__name__": "__main__"})
    else:
        sys.argv = [first, *others]
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])

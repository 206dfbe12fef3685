"""
A `python` and an `accelerate` that start at once. Of the ten seconds that most commands of a test take, seven go into
importing the same packages, so each command is forked from a server that has imported them.

Processes that a launcher starts beside each other are fresh ones, as everywhere: forked ones would hash strings alike,
and two ranks that go through a set in two orders would not be noticed.
"""

import atexit
import functools
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from launches import ENVIRONMENT


@functools.cache
def warm_bin() -> Path:
    """The folder that holds both, whose server runs as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm_"))
    client = f"exec {sys.executable} -IS {Path(__file__).with_name('warm_client.py')} {folder / 'socket'}"
    for name in ("python", "accelerate"):
        (folder / name).write_text(f'#!/bin/sh\n{client} {name} "$@"\n')
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        command = [
            sys.executable,
            Path(__file__).with_name("warm_server.py"),
            str(listener.fileno()),
            folder / "python",
        ]
        pipes = {"pass_fds": [listener.fileno()], "stdin": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
    atexit.register(server.kill)
    return folder

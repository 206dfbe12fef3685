"""What the `python` and the `accelerate` of warm_python.py are: they hand their command to its server, and wait."""

import json
import os
import signal
import socket
import sys


connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
request = json.dumps({"command": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(request)
process = int.from_bytes(connection.recv(8), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(process, number))
status = connection.recv(1)
sys.exit(status[0] if status else 1)  # a process that was killed says nothing

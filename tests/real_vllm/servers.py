"""`vllm serve` on the CPU, in a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


# GiB for keys and values; no calls to anywhere; and no engine in a child, which would not see what a test patches.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
os.environ.update(ENVIRONMENT)
# The default wants 92 % of the machine's memory to be free. vLLM 0.30 dies on a CPU where it takes in a prompt with a
# seed in parts ("CPU Generator does not use offset").
ENGINE = {"max_model_len": 2048, "gpu_memory_utilization": 0.3, "enforce_eager": True, "enable_chunked_prefill": False}
FLAGS = ["--max-model-len", "2048", "--gpu-memory-utilization", "0.3", "--enforce-eager", "--no-enable-chunked-prefill"]
FLAGS += ["--dtype", "float32"]
PATIENCE = 90  # seconds without a server: a test starts it anew
POOLING = ["--runner", "pooling", "--limit-mm-per-prompt", '{"image": 2, "video": 2}']
ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "src/vl_reward/tiny/checkpoints"
START_SECONDS = 240


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """`vllm serve` of a folder, which can be killed and started again at its address."""

    def __init__(self, folder, log, flags):
        self.port, self.log = free_port(), Path(log)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]  # `vllm` looks for a package of that name
        self.command = [*module, "--model", str(folder), "--port", str(self.port), *FLAGS, *flags]

    def start(self):
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return self

    def wait(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(self.url.replace("/v1", "/health"), timeout=5)
                return self
            time.sleep(0.5)
        raise AssertionError(f"no server after {START_SECONDS} s: {self.log.read_text()[-4000:]}")

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

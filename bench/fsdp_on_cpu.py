"""
Runs a script as accelerate runs it under FSDP2, on a CPU: `accelerate launch ... bench/fsdp_on_cpu.py recipe.py ...`.

Accelerate takes the FSDP branch only where it finds GPUs (`AcceleratorState.__init__`). Told that it has some, and that
they are this CPU, it takes the same path with gloo: `fully_shard`, gathers, and sharded optimizer states are real.
"""

import os
import runpy
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType


os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
start = PartialState.__init__
PartialState.__init__ = lambda self, cpu=False, **kwargs: start(self, cpu=False, **kwargs)
del sys.argv[0]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")

"""SIGTERM, which schedulers send some time before they kill: training saves a checkpoint and ends."""

import signal
import threading

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback


class StopSignal(TrainerCallback):
    """
    Ends training after the step in which any process was sent SIGTERM, with a checkpoint, on all processes at once.

    transformers' `enable_jit_checkpoint` waits three seconds first, lets each process decide by itself, so that some
    save while others compute, and may save between two micro-batches of a step.
    """

    EXIT_CODE = 128 + signal.SIGTERM  # as a shell reports it, so that a script does not go on to the next recipe

    def __init__(self):
        self.received = self.stopped = False
        self.previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self.receive)

    def receive(self, number, frame):
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        received = reduce(torch.tensor(float(self.received), device=args.device), "sum").item() > 0
        if received and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.give_back()

    def give_back(self) -> None:
        """Let SIGTERM do again what it did before, also after a training that an error ended."""
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            self.previous = None

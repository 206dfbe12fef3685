"""The reward shift of Binary Classifier Optimization, as Mixed Preference Optimization uses it."""

from transformers import TrainerCallback


class RewardShift(TrainerCallback):
    """
    The reward shift δ of BCO: the mean of all implicit rewards so far, chosen and rejected alike, over all ranks. It
    moves once per optimizer step, so it does not depend on how a batch is divided into micro-batches.

    Raises:
        FloatingPointError: If it leaves [`RewardShift.LIMIT`], where the policy has left its reference.
    """

    LIMIT = 10.0  # of either sign. A reward is shifted into sigmoid's flat part there: BCO teaches nothing any more

    def __init__(self):
        self.total, self.count = 0.0, 0
        self.pending: list[float] = []
        self.furthest = (0.0, None)  # the reward furthest from 0 on this process since the last step, and its pair

    @property
    def value(self) -> float:
        """δ, 0 before the first step."""
        return self.total / self.count if self.count else 0.0

    def note(self, rewards: dict[str, float]):
        """Remember the pair whose reward is the furthest from 0, for the error message."""
        for pair, reward in rewards.items():
            if abs(reward) > abs(self.furthest[0]):
                self.furthest = (reward, pair)

    def on_step_end(self, args, state, control, **kwargs):
        self.total += sum(self.pending)
        self.count += len(self.pending)
        self.pending.clear()
        if abs(self.value) > self.LIMIT:
            reward, pair = self.furthest
            raise FloatingPointError(
                f"The reward shift is {self.value:.1f} after step {state.global_step}: the policy has left its "
                f"reference. The reward furthest out in this step is {reward:.1f}, of {pair}. Lower the learning rate, "
                "raise `beta`, or look at that pair."
            )
        self.furthest = (0.0, None)

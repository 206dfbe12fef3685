"""Work for the next batch while the model computes this one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


Item, Result = TypeVar("Item"), TypeVar("Result")


def computed_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """
    `function` of each item in turn, computed in a thread of its own while what was given before is in use. Reading
    images and making patches of them leaves Python's lock, and so does a model's forward pass.

    Args:
        function (`Callable`):
            What it raises is raised where its result would be given. Where it uses a tokenizer, nothing else may use
            that one meanwhile: a fast tokenizer ends in "Already borrowed".
        items (`Iterable`):
            They are taken one ahead.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for item in items:
            ready, coming = coming, thread.submit(function, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()

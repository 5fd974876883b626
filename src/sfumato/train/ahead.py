"""Batches that are ready before their step: threads prepare the next ones while the network is busy with this one."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

EACH = 2  # batches, at most, that are prepared or wait for their step, for each worker

T = TypeVar("T")


def ahead(batch: Callable[[int], T], steps: range, *, workers: int) -> Generator[T, None, None]:
    """`batch(step)` for each step in turn, made by so many threads, or without any when it is asked for.

    What a batch raises is raised at its own step, as it would be without threads. Closing the generator ends them;
    those that are busy finish their batch first.
    """
    if workers == 0:
        yield from map(batch, steps)
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        for step in steps:
            waiting.append(pool.submit(batch, step))
            if len(waiting) == EACH * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

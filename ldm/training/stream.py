"""The endless stream of training batches, addressed by step.

Batch (step, micro) is drawn with a generator seeded from (seed, step, micro, rank), so the position in the
data is the step number: nothing needs to be saved, and a resumed run sees what an uninterrupted one would
have seen.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ldm.training.seeding import generator


@dataclass
class BatchStream:
    """Iterate over dicts of images (b, 3, h, w), captions, extra inputs, step, micro, from step `start` on.

    Args:
        data: offers `batch(generator, batch_size) -> (images, captions)`, or with {name: extra input} too.
        batch_size, accumulate, seed, rank: as in TrainOptions.
        prefetch: batches prepared ahead by one thread; the draws do not depend on it.
    """

    data: Any
    batch_size: int
    accumulate: int
    seed: int
    rank: int = 0
    prefetch: int = 0
    start: int = 0

    def read(self, step: int, micro: int) -> dict[str, Any]:
        """Return the micro-batch `micro` of `step`."""
        images, captions, *given = self.data.batch(
            generator(self.seed, "data", step, micro, self.rank), self.batch_size
        )
        extra = given[0] if given else {}
        return {"images": images, "captions": captions, **extra, "step": step, "micro": micro}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.prefetch == 0:
            yield from (self.read(*place) for place in self._places())
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as pool:
            waiting: deque[Future] = deque()
            for place in self._places():
                waiting.append(pool.submit(self.read, *place))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()

    def _places(self) -> Iterator[tuple[int, int]]:
        step = self.start
        while True:
            yield from ((step, micro) for micro in range(self.accumulate))
            step += 1

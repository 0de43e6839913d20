"""Text-to-image: noise -> latents -> image.

Noise is drawn in this order: x_T, then one draw a step.
"""

from collections.abc import Iterator

from ldm.requests import Txt2Img
from ldm.tasks.batch import Batch
from ldm.tasks.hires import hires
from ldm.tasks.run import Run, Task


def txt2img(run: Run, request: Txt2Img) -> Iterator[Batch]:
    """Make images of any size from prompts; with `hires` in two passes.

    The model works on the next size that it can take, and the middle of that is returned.
    """
    if request.hires is not None:
        yield from hires(run, request)
        return
    for batch in run.each(run.frame(request.height, request.width)):
        yield batch.done(batch.denoise(batch.begin(), batch.cond()))


TASK = Task(txt2img)

"""Text-to-image under ControlNets (arXiv 2302.05543): the maps of one or more images steer what is where."""

from ldm.errors import InputError
from ldm.requests import Controlnet
from ldm.tasks.inputs import read_inputs
from ldm.tasks.run import Task
from ldm.tasks.txt2img import txt2img


def load(request: Controlnet) -> Controlnet:
    """Return the request with its noise read. Raises: InputError, also where nothing is to be followed."""
    if not request.controls:
        raise InputError("give what to follow: --control KIND:FILE, such as --control canny:photo.png")
    return read_inputs(request)


TASK = Task(txt2img, load=load)

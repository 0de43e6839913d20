"""HED's edges in three levels, for the softedge model of ControlNet 1.1 (SoftEdge_HED_safe of its page).

    map = floor(3 e) / 2        e: the edges of `hed`, 0..1
"""

from ldm.annotators.hed import Hed
from ldm.requests.fields import request


@request(safe=True)
class Softedge(Hed):
    """Black, grey and white edges; `safe=False` gives those of `hed`."""

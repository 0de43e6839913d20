"""Turn images into the maps that ControlNets take: edges, depth, normals, poses, lines, ...

  python scripts/annotate.py canny photo.jpg                      outputs/canny/photo.png
  python scripts/annotate.py canny --help                         the options of canny
  python scripts/annotate.py sketch photos/ --out maps            every image of a folder and those below it
  python scripts/annotate.py hed photo.jpg --annotator-weights ControlNetHED.pth
  python scripts/annotate.py pose *.jpg --annotator-weights models/annotators

Networks read their weights from --annotator-weights, a file or a folder with the released files
(ControlNetHED.pth, network-bsds500.pth, body_pose_model.pth, mlsd_large_512_fp32.pth,
dpt_hybrid-midas-501f0c75.pt); nothing is downloaded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import annotate  # noqa: E402

if __name__ == "__main__":
    sys.exit(annotate.main(__doc__))

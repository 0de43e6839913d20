"""Make what the unCLIP demo model is built from: image tower and statistics of its embeddings.

    python demo/unclip_parts.py --out runs/emoji_unclip_parts

The tower was trained on pixels x in -1..1; unCLIP's embedder hands it CLIP's normalised pixels a x + c. So
its first layer is rewritten, exactly: W' = W / a, and the positions of patches less the sum of W' c.

    OUT/tower.safetensors    diffusion.embedder_ckpt of configs/training/emoji_unclip.yaml
    OUT/stats.safetensors    mean and std, each (D,), over random scenes of the training split
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

DEMO = ROOT / "configs/demo"


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--clip", type=Path, default=DEMO / "emoji_clip_image.safetensors", help="the image tower")
    add("--arch", type=Path, default=DEMO / "emoji_clip.json", help="its architecture")
    add("--data", type=Path, default=ROOT / "data/emoji/128", help="folder of make_emoji.py")
    add("--concepts", type=Path, default=DEMO / "drawn.txt", help="file of the labels to draw")
    add("--count", type=int, default=4096, help="images that the statistics are taken over")
    add("--out", type=Path, default=Path("runs/emoji_unclip_parts"), help="folder to write to")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from demo.scenes import EmojiScenes
    from ldm.files.atomic import atomic_write
    from ldm.models.image_clip import FrozenOpenCLIPImageEmbedder

    tower = normalised_input(load_file(args.clip))
    embedder = FrozenOpenCLIPImageEmbedder(arch=str(args.arch), antialias=False)
    embedder.model.visual.load_state_dict({k.removeprefix("visual."): x.float() for k, x in tower.items()})
    scenes = EmojiScenes(args.data, concepts=args.concepts)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        parts = [embedder(scenes.batch(random, 64)[0]) for _ in range(0, args.count, 64)]
    embedded = torch.cat(parts)
    stats = {"mean": embedded.mean(0), "std": embedded.std(0)}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("tower", tower), ("stats", stats)):
        atomic_write(args.out / f"{name}.safetensors", lambda file, tensors=tensors: save_file(tensors, file))
    deviation = float(stats["std"].mean())
    print(f"{args.out}: tower and statistics over {len(embedded)} images, mean deviation {deviation:.3f}")


def normalised_input(tower: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return a tower that computes of CLIP's normalised pixels what `tower` does of pixels in -1..1."""
    import torch

    from ldm.models.image_clip import MEAN, STD

    a = torch.tensor([0.5 / std for std in STD])
    c = torch.tensor([(0.5 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    name, positions = "visual.conv1.weight", "visual.positional_embedding"
    weight = tower[name].float() / a[None, :, None, None]  # (width, 3, p, p)
    moved = tower[positions].float().clone()
    moved[1:] -= torch.einsum("wcij,c->w", weight, c)  # the first position is that of the class token
    return {**tower, name: weight, positions: moved}


if __name__ == "__main__":
    app.run(make_parser(), main)

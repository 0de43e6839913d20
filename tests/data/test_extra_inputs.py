"""What conditional models are shown of the data: masks, depth, small images."""

import pytest
import torch

from demo.extra_inputs import make_extra_input, random_masks, shrunk
from demo.scenes import EmojiScenes
from ldm.data.extra_inputs import inflated
from ldm.errors import InputError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masks_are_whole_boxes_and_strokes():
    masks = random_masks(seeded(0), 400, 32)
    assert masks.shape == (400, 1, 32, 32) and set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.mean(dim=(1, 2, 3))
    assert 0.13 < (share == 1).float().mean() < 0.27
    rows, columns = masks.amax(dim=3).sum(dim=2)[:, 0], masks.amax(dim=2).sum(dim=2)[:, 0]
    boxes = (rows * columns == masks.sum(dim=(1, 2, 3))) & (share < 1)
    assert 0.3 < boxes.float().mean() < 0.5
    assert share[share < 1].min() > 0.02
    assert torch.equal(masks, random_masks(seeded(0), 400, 32))


def test_a_disc_inflates_to_a_half_sphere():
    axis = torch.arange(65) - 32
    distance = (axis[:, None] ** 2 + axis[None] ** 2).float().sqrt()
    depth = inflated((distance <= 25).float()[None, None])[0, 0]
    assert depth[distance > 25].max() == 0 and depth[32, 32] == 1
    expected = (1 - (distance / 26).clamp(max=1).square()).sqrt()
    assert (depth - expected).abs().mean() < 0.05
    assert depth[32, 32:57].diff().max() <= 0, "it falls towards the edge"


def test_a_full_and_an_empty_image_inflate_too():
    assert inflated(torch.zeros(1, 1, 8, 8)).abs().max() == 0
    full = inflated(torch.ones(1, 1, 9, 9))
    assert full[0, 0, 4, 4] == 1 and 0 < full[0, 0, 0, 0] < 0.8


def test_shrinking_keeps_a_constant_and_refuses_other_sides():
    assert torch.allclose(shrunk(torch.full((1, 3, 16, 8), 0.3)), torch.full((1, 3, 4, 2), 0.3))
    with pytest.raises(InputError, match="18 x 16"):
        shrunk(torch.zeros(1, 3, 16, 18))


@pytest.mark.parametrize("name, channels, side", [("mask", 1, 32), ("depth", 1, 32), ("small", 3, 8)])
def test_scenes_give_extra_inputs_beside_the_same_images(emoji_folder, name, channels, side):
    plain, conditional = EmojiScenes(emoji_folder), EmojiScenes(emoji_folder, extra_input=name)
    images, captions = plain.batch(seeded(1), 6)
    same, words, given = conditional.batch(seeded(1), 6)
    assert torch.equal(images, same) and captions == words
    assert given[name].shape == (6, channels, side, side) and len(given) == 1


def test_depth_is_where_the_object_is(emoji_folder):
    scenes = EmojiScenes(emoji_folder, two_object_fraction=0, background_fraction=0, extra_input="depth")
    images, _, given = scenes.batch(seeded(2), 4)
    drawn = (images < 0).any(dim=1, keepdim=True)
    assert (given["depth"] > 0).float().sub(drawn.float()).abs().mean() < 0.05


def test_crops_are_parts_of_the_scene(emoji_folder):
    images, captions = EmojiScenes(emoji_folder, crop=16).batch(seeded(3), 8)
    assert images.shape == (8, 3, 16, 16) and len(captions) == 8
    whole, _ = EmojiScenes(emoji_folder).batch(seeded(3), 8)
    windows = whole.unfold(2, 16, 1).unfold(3, 16, 1)  # (b, 3, rows, columns, 16, 16)
    nearest = (windows - images[:, :, None, None]).abs().amax(dim=(1, 4, 5)).amin(dim=(1, 2))
    assert nearest.max() < 1e-6
    small = EmojiScenes(emoji_folder, crop=16, extra_input="small").batch(seeded(3), 8)[2]["small"]
    torch.testing.assert_close(small, make_extra_input("small", images, images[:, :1], seeded(0))["small"])


def test_wrong_choices_are_named(emoji_folder):
    with pytest.raises(InputError, match="extra_input 'masks'"):
        EmojiScenes(emoji_folder, extra_input="masks")
    with pytest.raises(InputError, match="crop 33"):
        EmojiScenes(emoji_folder, crop=33)

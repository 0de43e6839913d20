"""Scenes: the same from the same seed, the right colours at the right places, held-out cells kept apart."""

import pytest
import torch

from demo.captions import BACKGROUNDS
from demo.scenes import EmojiScenes
from ldm.errors import InputError


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _pixel(image, row, column):
    return ((image[:, row, column] + 1) * 127.5).round().tolist()


def test_a_seed_is_a_data_set(emoji_folder):
    data = EmojiScenes(emoji_folder)
    images, captions = data.batch(_generator(), 32)
    again, captions_again = EmojiScenes(emoji_folder).batch(_generator(), 32)
    other, _ = data.batch(_generator(1), 32)
    assert torch.equal(images, again)
    assert captions == captions_again
    assert not torch.equal(images, other)
    assert images.shape == (32, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1


def test_the_global_generator_is_left_alone(emoji_folder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    EmojiScenes(emoji_folder).batch(_generator(), 8)
    assert torch.equal(before, torch.get_rng_state())


def test_splits_divide_the_cells(emoji_folder):
    splits = [EmojiScenes(emoji_folder, split) for split in ("train", "held_out", "all")]
    names = [{(cell["label"], cell["style"]) for cell in data.cells} for data in splits]
    train, held_out, everything = splits
    assert names[0] | names[1] == names[2]
    assert not names[0] & names[1]
    assert len(held_out) > 0
    assert len(train) + len(held_out) == len(everything) == 80
    assert {label for label, _ in names[0]} == set(everything.labels)  # every concept is known in some style


def test_held_out_cells_are_never_in_a_training_scene(emoji_folder):
    captions = EmojiScenes(emoji_folder, "train", bare_label_fraction=0).batch(_generator(), 3000)[1]
    forbidden = EmojiScenes(emoji_folder, "held_out").cells
    assert forbidden
    for cell in forbidden:
        for text in captions:
            phrases = text.split(" emoji of ")[1].split(",")[0].split(" next to ")
            assert not (text.startswith(cell["style"]) and cell["phrase"] in phrases)


@pytest.mark.parametrize("colour", [*BACKGROUNDS, None])
@pytest.mark.parametrize("second", [None, "owl"])
def test_background_colour_is_at_the_corners_as_the_caption_says(emoji_folder, colour, second):
    data = EmojiScenes(emoji_folder, "all")
    image, text = data.render("red apple", "flat", background=colour, second=second)
    expected = (255, 255, 255) if colour is None else BACKGROUNDS[colour]
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert _pixel(image, row, column) == pytest.approx(expected, abs=0.6)
    assert text.endswith(f", {colour} background") == (colour is not None)
    assert ("next to an owl" in text) == (second is not None)


def test_random_scenes_show_the_colour_they_name(emoji_folder):
    images, captions = EmojiScenes(emoji_folder, bare_label_fraction=0).batch(_generator(), 400)
    colours = {f", {name} background": rgb for name, rgb in BACKGROUNDS.items()}
    named = 0
    for image, text in zip(images, captions, strict=True):
        rgb = next((rgb for ending, rgb in colours.items() if text.endswith(ending)), (255, 255, 255))
        named += rgb != (255, 255, 255)
        assert _pixel(image, 0, 0) == pytest.approx(rgb, abs=0.6)
    assert 0.5 < named / 400 < 0.7


def test_mirroring_swaps_left_and_right_except_for_clocks(emoji_folder):
    data = EmojiScenes(emoji_folder, "all")
    straight, flipped = (data.render("dog face", "3d", flip=flip)[0] for flip in (False, True))
    assert _pixel(straight, 16, 10) == [0, 255, 0]
    assert _pixel(flipped, 16, 10) == [0, 0, 255]
    clocks = [data.render("alarm clock", "3d", flip=flip)[0] for flip in (False, True)]
    assert torch.equal(*clocks)


def test_random_scenes_mirror_half_of_what_may_be_mirrored(emoji_folder):
    for concept, low, high in (("dog face", 0.4, 0.6), ("alarm clock", 0.0, 0.0)):
        data = EmojiScenes(emoji_folder, "all", concepts=[concept], two_object_fraction=0)
        images, _ = data.batch(_generator(), 300)
        share = (images[:, 2, 16, 10] > images[:, 1, 16, 10]).float().mean()
        assert low <= share <= high


def test_two_objects_stand_left_and_right_in_the_caption_order(emoji_folder, tmp_path):
    data = EmojiScenes(emoji_folder, "all")
    image, text = data.render("cherries", "flat", second="scissors")
    assert text == "flat emoji of cherries next to scissors"
    painted = (image < 0.9).any(0)
    assert painted[:, :16].any()
    assert painted[:, 16:].any()
    assert not painted[:, 15:17].all(1).any()
    # The sprite of the second is another one: only the right half changes.
    data._sprites[0.46][data._index["scissors", "flat"]] = 0
    alone, _ = data.render("cherries", "flat", second="scissors")
    assert torch.equal(alone[:, :, :16], image[:, :, :16])
    assert (alone[:, :, 16:] == 1).all()


def test_fractions_are_honoured(emoji_folder):
    def captions(**fractions):
        return EmojiScenes(emoji_folder, **fractions).batch(_generator(), 500)[1]

    assert all("next to" in text for text in captions(two_object_fraction=1.0, bare_label_fraction=0))
    assert all("background" in text for text in captions(background_fraction=1.0, bare_label_fraction=0))
    assert all(text == "" for text in captions(empty_caption_fraction=1.0))
    assert all("emoji of" not in text for text in captions(bare_label_fraction=1.0, two_object_fraction=0))
    share = sum("next to" in text for text in captions(two_object_fraction=0.3)) / 500
    assert 0.24 < share < 0.36


def test_everyday_names_stand_for_labels(emoji_folder):
    data = EmojiScenes(emoji_folder, concepts=["red apple"], everyday_fraction=1.0, bare_label_fraction=0)
    assert all(" an apple" in text for text in data.batch(_generator(), 20)[1])


def test_styles_and_concepts_select(emoji_folder, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("# two\nowl\nsun\n", encoding="utf-8")
    data = EmojiScenes(emoji_folder, "all", styles=["flat"], concepts=listing, size=48)
    assert data.labels == ["owl", "sun"]
    assert data.styles == ["flat"]
    assert data.batch(_generator(), 2)[0].shape == (2, 3, 48, 48)


def test_alpha_edges_never_leave_the_range_between_sprite_and_ground(emoji_folder):
    image, _ = EmojiScenes(emoji_folder, "all").render("owl", "3d", background="black")
    assert _pixel(image, 16, 16) != _pixel(image, 0, 0)
    assert image.min() >= -1
    assert image.max() <= 1


def test_mistakes_are_named(emoji_folder, tmp_path):
    with pytest.raises(InputError, match="make_emoji"):
        EmojiScenes(tmp_path)
    with pytest.raises(InputError, match="expected train, held_out or all"):
        EmojiScenes(emoji_folder, "test")
    with pytest.raises(InputError, match="no sprite left"):
        EmojiScenes(emoji_folder, styles=["oil"])
    data = EmojiScenes(emoji_folder, "all")
    with pytest.raises(InputError, match="no 3d emoji of 'cat'"):
        data.render("cat")
    with pytest.raises(InputError, match="expected one of red"):
        data.render("owl", background="beige")

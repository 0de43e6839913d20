"""The measures of benchmarks/demo_quality.py on pictures whose answer is known."""

import json
import math

import pytest
import torch

from benchmarks.demo_quality import main
from benchmarks.quality import (
    COLOURS,
    Asked,
    corner_colours,
    halves,
    in_order,
    nearest_distance,
    pair_requests,
    proportion,
    psnr,
    real_images,
    recall,
    sample_sheet,
    single_requests,
    summary,
)
from demo.scenes import EmojiScenes
from golden_cases import cases
from ldm.errors import InputError


def test_psnr_of_a_known_error():
    images = torch.zeros(2, 3, 4, 4)
    assert psnr(images + 0.2, images).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_real_pictures_have_the_grounds_asked_for(emoji_folder):
    scenes = EmojiScenes(emoji_folder, "all")
    asked = single_requests(scenes, 33, torch.Generator().manual_seed(0))
    images = real_images(asked, scenes)
    assert {one.colour for one in asked} == set(COLOURS)
    assert corner_colours(images) == [one.colour for one in asked]
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    hits = [a == b.colour for a, b in zip(corner_colours(noisy), asked, strict=True)]
    assert sum(hits) > 30
    assert corner_colours(-images) != [one.colour for one in asked]


def test_prompts_follow_the_grammar(emoji_folder):
    scenes = EmojiScenes(emoji_folder, "all")
    assert Asked("owl", "3d", "blue").prompt(scenes) == "3d emoji of an owl, blue background"
    assert Asked("owl", "flat", None, "sun").prompt(scenes) == "flat emoji of an owl next to the sun"


def test_pairs_are_different_concepts_of_one_style(emoji_folder):
    scenes = EmojiScenes(emoji_folder)
    asked = pair_requests(scenes, 20, torch.Generator().manual_seed(0))
    assert len(asked) == 20
    known = {(cell["label"], cell["style"]) for cell in scenes.cells}
    for one in asked:
        assert one.label != one.second
        assert {(one.label, one.style), (one.second, one.style)} <= known


def test_recall_counts_the_wanted_label_among_the_first():
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    wanted = torch.tensor([0, 1, 2])
    assert recall(similarity, wanted, 1).tolist() == [True, False, False]
    assert recall(similarity, wanted, 2).tolist() == [True, True, False]
    assert recall(similarity, wanted, 5).all()


def test_order_is_right_as_written_and_wrong_when_swapped():
    x, y = torch.eye(2)[:1], torch.eye(2)[1:]
    assert in_order(x, y, x, y).tolist() == [True]
    assert in_order(y, x, x, y).tolist() == [False]


def test_halves_hold_the_two_objects(emoji_folder):
    scenes = EmojiScenes(emoji_folder, "all")
    left, right = halves(scenes.render("owl", "3d", second="sun")[0][None])
    assert left.shape == right.shape == (1, 3, 16, 16)
    assert (left < 0.9).any()
    assert (right < 0.9).any()


def test_nearest_distance_finds_the_copy():
    generator = torch.Generator().manual_seed(0)
    references = torch.rand(5, 3, 8, 8, generator=generator) * 2 - 1
    distance, which = nearest_distance(references[[3, 1]], references)
    assert which.tolist() == [3, 1]
    assert distance.max() < 1e-3
    white, black = torch.ones(1, 3, 8, 8), -torch.ones(1, 3, 8, 8)
    assert nearest_distance(white, black)[0].item() == pytest.approx(1.0)


def test_proportion_has_wilson_interval():
    found = proportion([True] * 8 + [False] * 2)
    assert found["value"] == pytest.approx(0.8)
    assert found["n"] == 10
    assert found["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-3)
    assert proportion([])["n"] == 0


def test_sheet_and_summary_show_every_figure():
    sheet = sample_sheet([("3d emoji of an owl, blue background", torch.zeros(3, 32, 32))] * 9)
    assert sheet.size == (8 * 40, 2 * 68)
    assert sheet.getpixel((1, 1)) == (128, 128, 128)
    lines = summary({"a": {"b": proportion([True]), "labels": 3}, "n": 0})
    assert len(lines) == 1
    assert lines[0].startswith("a b")
    assert not math.isnan(float(lines[0].split()[2]))


@pytest.mark.slow
def test_the_benchmark_runs_whole_on_a_tiny_model(emoji_folder, tmp_path, capsys):
    import open_clip
    from safetensors.torch import save_file

    arch = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 4610, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "clip.json").write_text(json.dumps(arch), encoding="utf-8")
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**arch).state_dict(), tmp_path / "clip.safetensors")
    model = cases("e2e_txt2img")[0].files
    code = main(
        ["--config", str(model["config"]), "--ckpt", str(model["checkpoint"]), "--device", "cpu",
         "--data", str(emoji_folder), "--clip", str(tmp_path / "clip.safetensors"), "--limit", "3",
         "--clip-arch", str(tmp_path / "clip.json"), "--steps", "2", "--batch-size", "2",
         "--out", str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "out" / "quality.json").read_text(encoding="utf-8"))
    measures = result["measures"]
    assert result["model"]["pixels"] == 64
    assert measures["known"]["retrieval"]["labels"] == 40
    assert measures["known"]["background"]["n"] == 3
    assert measures["left_right_order"]["generated"]["n"] == 3
    assert measures["held_out"]["nearest"]["copies"]["value"] == 0  # random weights copy nothing
    assert 0 < measures["autoencoder_psnr_db"]["known"]["value"] < 30
    for name in ("known", "held_out", "pairs"):
        assert (tmp_path / "out" / f"{name}.png").is_file()
    assert "n=3" in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        main(["--config", str(tmp_path / "none.yaml")])

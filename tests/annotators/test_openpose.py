"""OpenPose: its network, how people are put together from its maps, and how they are drawn."""

import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from annotator_cases import aux, photograph, randomised
from torch import Tensor, nn

from ldm.annotators import find
from ldm.annotators.openpose import LIMBS, PARTS, Peak, assemble, drawn, find_links, find_peaks
from ldm.errors import BadValuesError, WrongModelError
from ldm.models.body_pose import HEATS, PAFS, BodyPose

# Where the parts of a standing person are, x and y in units of their height, and of one with raised arms.
STANDING = (
    (0.5, 0.1), (0.5, 0.2), (0.4, 0.2), (0.36, 0.35), (0.35, 0.48), (0.6, 0.2), (0.64, 0.35), (0.65, 0.48),
    (0.44, 0.5), (0.44, 0.7), (0.44, 0.9), (0.56, 0.5), (0.56, 0.7), (0.56, 0.9), (0.47, 0.07), (0.53, 0.07),
    (0.43, 0.08), (0.57, 0.08),
)  # fmt: skip
RAISED = {3: (0.3, 0.12), 4: (0.28, 0.02), 6: (0.7, 0.12), 7: (0.72, 0.02)}


def figure(left: float, top: float, height: float, raised: bool = False) -> dict[int, tuple[float, float]]:
    """Return the parts of a person in pixels."""
    places = dict(enumerate(STANDING)) | (RAISED if raised else {})
    return {part: (left + height * x, top + height * y) for part, (x, y) in places.items()}


def maps_of(people: list[dict], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return affinity fields (38, h, w) and heat maps (19, h, w) of people, in pixels of these maps."""
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    fields, heats = np.zeros((PAFS, height, width), np.float32), np.zeros((HEATS, height, width), np.float32)
    for parts in people:
        for part, (x, y) in parts.items():
            heats[part] = np.maximum(heats[part], np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 2))
        for a, b, at in LIMBS:
            if a in parts and b in parts:
                start, end = np.array(parts[a]), np.array(parts[b])
                length = np.hypot(*(end - start))
                unit = (end - start) / length
                along = (xs - start[0]) * unit[0] + (ys - start[1]) * unit[1]
                across = np.abs((xs - start[0]) * unit[1] - (ys - start[1]) * unit[0])
                inside = (across < 1.2) & (along > -1) & (along < length + 1)
                fields[at : at + 2, inside] = unit[:, None]
    return fields, heats


class Told(nn.Module):
    """A network that answers with given maps."""

    def __init__(self, fields: np.ndarray, heats: np.ndarray) -> None:
        super().__init__()
        self.fields, self.heats = (
            nn.Parameter(torch.from_numpy(x)[None], requires_grad=False) for x in (fields, heats)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[-2:] == (8 * self.heats.shape[-2], 8 * self.heats.shape[-1])
        return self.fields, self.heats


SCENES = {
    "one": [figure(5, 1, 21)],
    "two": [figure(-3, 2, 18), figure(12, 1, 20, raised=True)],
    "half": [{part: at for part, at in figure(5, 1, 34).items() if at[1] < 22}],
    "three in a row": [figure(-3, 8, 14), figure(7, 7, 15, raised=True), figure(17, 8, 14)],
    "nobody": [],
    "a hand": [{part: at for part, at in figure(5, 1, 21).items() if part in (3, 4)}],
}


def theirs(fields: np.ndarray, heats: np.ndarray) -> object:
    aux("open_pose.util")       # which imports body, and body it
    body = aux("open_pose.body")
    found = body.Body.__new__(body.Body)
    found.model = Told(fields, heats)
    return found


@pytest.mark.parametrize("name", SCENES)
def test_people_and_skeletons_equal_controlnet_aux(name: str):
    """The network sees the image at 253x184 pixels, so that its maps are 32x23."""
    image = np.zeros((192, 264, 3), np.uint8)
    maps = maps_of(SCENES[name], 23, 32)
    reference = theirs(*maps)
    candidate, subset = reference(image)
    annotator = find("openpose")(resolution=None)
    annotator.__dict__["network"] = Told(*maps)
    people = annotator.people(image)
    expected = [
        {part: tuple(candidate[int(index)][:2]) for part, index in enumerate(row[:PARTS]) if index >= 0}
        for row in subset
    ]
    assert [{part: (at.x, at.y) for part, at in each.peaks.items()} for each in people] == expected
    assert [each.score for each in people] == pytest.approx([row[-2] for row in subset])
    assert [each.count for each in people] == [row[-1] for row in subset]
    assert len(people) == (0 if name in ("nobody", "a hand") else len(SCENES[name]))
    canvas = np.zeros_like(image)
    for result in reference.format_body_result(candidate, subset):
        points = [point and point._replace(x=(point.x + 0.5) / 264, y=(point.y + 0.5) / 192)
                  for point in result.keypoints]
        canvas = aux("open_pose.util").draw_bodypose(canvas, points)
    half = [{part: SimpleNamespace(x=at.x + 0.5, y=at.y + 0.5) for part, at in each.peaks.items()}
            for each in people]
    assert np.array_equal(drawn(half, (192, 264)), canvas)


def test_drawing_of_given_points_equals_controlnet_aux():
    draw = np.random.default_rng(0)
    draw_bodypose, point = aux("open_pose.util").draw_bodypose, aux("open_pose.body").Keypoint
    for _ in range(20):
        places = draw.integers(-20, 220, (PARTS, 2)) + 0.5
        seen = draw.uniform(size=PARTS) < 0.8
        parts = {i: SimpleNamespace(x=x, y=y) for i, (x, y) in enumerate(places) if seen[i]}
        points = [point(x / 256, y / 128) if seen[i] else None for i, (x, y) in enumerate(places)]
        expected = draw_bodypose(np.zeros((128, 256, 3), np.uint8), points)
        assert expected.any() and np.array_equal(drawn([parts], (128, 256)), expected)


def test_the_network_equals_controlnet_aux():
    with torch.device("meta"):
        ours, reference = BodyPose(), aux("open_pose.model").bodypose_model()
    ours = randomised(ours, 0)
    reference.load_state_dict(ours.state_dict(), assign=True)
    images = torch.rand(1, 3, 32, 40) - 0.5
    with torch.inference_mode():
        for found, expected in zip(ours(images), reference.eval()(images), strict=True):
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_bare", [True, False])
def test_the_released_file_names_layers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_bare: bool):
    expected = randomised(BodyPose(stages=1), 0).state_dict()
    monkeypatch.setattr("ldm.models.body_pose.BodyPose", lambda: BodyPose(stages=1))
    names = {name: name.partition(".")[2] if is_bare else name for name in expected}
    torch.save({names[name]: x.half() for name, x in expected.items()}, tmp_path / "body_pose_model.pth")
    loaded = find("pose")(annotator_weights=tmp_path, device="cpu").network.state_dict()
    assert all(torch.equal(loaded[name], x.half().float()) for name, x in expected.items())


def test_the_network_sees_bgr_at_half_of_368_pixels_padded():
    annotator, seen = find("openpose")(), []

    def answer(images: np.ndarray) -> tuple[Tensor, Tensor]:
        seen.append(images)
        size = (1, 1, images.shape[0] // 8, images.shape[1] // 8)
        return torch.zeros(size).expand(1, PAFS, -1, -1), torch.zeros(size).expand(1, HEATS, -1, -1)

    annotator.__dict__["run"] = answer
    annotator(np.full((600, 450, 3), (255, 0, 64), np.uint8))
    assert seen[0].shape == (184, 136, 3)      # 512x704 becomes 133x184, and then a multiple of 8
    np.testing.assert_allclose(seen[0][10, 10], [64 / 256 - 0.5, -0.5, 255 / 256 - 0.5], atol=0.01)
    assert (seen[0][:, 133:] == 0).all()


def test_an_image_without_people_gives_a_black_map_and_says_so(caplog: pytest.LogCaptureFixture):
    annotator = find("openpose")(resolution=128)
    annotator.__dict__["network"] = Told(*maps_of([], 23, 23))
    with caplog.at_level(logging.WARNING):
        assert not annotator(photograph()).any()
    assert "no person was found in the image" in caplog.text


def test_a_peak_is_found_where_the_heat_is_highest():
    heat = cv2.GaussianBlur(maps_of([{0: (40, 30)}], 60, 80)[1][0], (0, 0), 2)
    assert find_peaks(10 * heat) == [Peak(40, 30, pytest.approx(10 * heat.max()))]
    assert find_peaks(heat / heat.max() * 0.1) == []


def test_links_use_every_peak_once():
    field = np.zeros((2, 20, 60))
    field[0, 8:12] = 1
    starts, ends = [Peak(5, 10, 1.0), Peak(15, 10, 1.0)], [Peak(25, 10, 1.0)]
    assert [(a.x, b.x) for a, b, _ in find_links(starts, ends, field, 100)] == [(5, 25)]
    assert find_links(ends, starts, field, 100) == []       # against the field


def test_people_of_few_parts_are_left_out():
    start, end = Peak(0, 0, 1.0), Peak(9, 9, 1.0)
    assert assemble([[(start, end, 1.0)], *[[] for _ in LIMBS[1:]]]) == []


def test_weights_with_nan_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldm.models.body_pose.BodyPose", lambda: BodyPose(stages=1))
    tensors = randomised(BodyPose(stages=1), 0).state_dict()
    tensors["model0.conv1_1.bias"][3] = torch.nan
    torch.save(tensors, tmp_path / "body_pose_model.pth")
    with pytest.raises(BadValuesError, match="NaN or infinite weights .* in model0.conv1_1.bias"):
        find("openpose")(annotator_weights=tmp_path, device="cpu").prepare()


def test_weights_of_another_network_are_named(tmp_path: Path):
    torch.save({"conv6_2_CPM.weight": torch.ones(22, 512, 1, 1)}, tmp_path / "hand.pth")
    with pytest.raises(WrongModelError, match="hand.pth is OpenPose's hand network .*; expected OpenPose'"):
        find("openpose")(annotator_weights=tmp_path / "hand.pth", device="cpu")(photograph())

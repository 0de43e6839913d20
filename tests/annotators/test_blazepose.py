"""BlazePose: its boxes and squares, and with OpenVINO and the mediapipe package a real skeleton."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from annotator_cases import photograph

from ldm.annotators import find
from ldm.annotators.blazepose import CROP, SIDE, Square, anchors, around, chosen, decoded, overlap
from ldm.errors import BackendUnavailable, CheckpointError


def answers(*people: tuple[int, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (2254, 12) and logits (2254,) with people: anchor, logit, and x and y of their hips."""
    boxes, logits = np.zeros((2254, 12), np.float32), np.full(2254, -9.0, np.float32)
    for number, logit, x, y in people:
        middle = anchors()[number]
        points = np.array([[x, y], [0.2, 0.2], [x, y], [x, y - 0.3], [x, y], [x, y]]) - middle
        points[1] += middle
        boxes[number], logits[number] = SIDE * points.reshape(12), logit
    return boxes, logits


def test_there_is_an_anchor_for_every_box():
    found = anchors()
    assert found.shape == (2254, 2)
    np.testing.assert_allclose(found[[0, 1, 2]], [[0.5 / 28, 0.5 / 28]] * 2 + [[1.5 / 28, 0.5 / 28]])
    np.testing.assert_allclose(found[-6:], [[6.5 / 7, 6.5 / 7]] * 6)


def test_boxes_of_one_person_are_averaged_by_their_scores():
    people = (10, 3.0, 0.30, 0.5), (1600, 1.0, 0.32, 0.5), (40, 0.5, 0.8, 0.6), (50, -1.0, 0.5, 0.5)
    boxes, logits = answers(*people)
    (first, second) = chosen(decoded(boxes), logits)
    weights = [1 / (1 + math.exp(-x)) for x in (3, 1)]
    np.testing.assert_allclose(first[0], [np.average([0.30, 0.32], weights=weights), 0.5], atol=1e-6)
    np.testing.assert_allclose(second, [[0.8, 0.6], [0.8, 0.3]], atol=1e-6)
    assert chosen(decoded(boxes), np.full(2254, -1.0)) == []


def test_overlap_is_shared_area():
    box = np.array([[0.5, 0.5], [0.2, 0.2]])
    assert overlap(box, box) == pytest.approx(1) and overlap(box, box + [[0.3, 0], [0, 0]]) == 0
    assert overlap(box, box + [[0.1, 0], [0, 0]]) == pytest.approx(1 / 3)


def test_squares_are_turned_upright():
    upright = around(np.array([[50.0, 80.0], [50.0, 40.0]]))
    assert upright == Square(50, 80, 100, pytest.approx(0))
    lying = around(np.array([[50.0, 80.0], [90.0, 80.0]]))        # the head is at the right
    assert lying.turn == pytest.approx(math.pi / 2)
    head = lying.matrix() @ [CROP / 2, CROP / 2 - CROP * 40 / 100, 1]       # above the middle of the crop
    np.testing.assert_allclose(head, [90, 80])


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CheckpointError, match="BlazePose needs pose_detection.tflite and pose_landmark_full"):
        find("blazepose")(annotator_weights=tmp_path).prepare()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="mediapipe package: pip install openvino"):
        find("blazepose")().prepare()


@pytest.mark.openvino
def test_the_skeleton_of_an_astronaut():
    """Her face, shoulders and elbows; her hips are outside the photograph."""
    pytest.importorskip("openvino")
    if importlib.util.find_spec("mediapipe") is None:
        pytest.skip("reads the weights in mediapipe")
    annotator, image = find("blazepose")(), photograph()
    (person,) = annotator.people(image)
    seen = {0: (220, 124), 14: (199, 102), 15: (240, 102), 2: (110, 230), 5: (305, 240), 1: (210, 232)}
    for part, (x, y) in seen.items():
        assert math.hypot(person[part].x - x, person[part].y - y) < 15, part
    assert not {8, 9, 10, 11, 12, 13} & person.keys()
    found = annotator(image)
    assert found.shape == image.shape and 0.005 < found.any(axis=2).mean() < 0.1
    assert not find("blazepose")()(np.full((256, 256, 3), 120, np.uint8)).any()

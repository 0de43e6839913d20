"""What benchmarks/control_quality.py measures."""

import pytest
import torch

from benchmarks.control_quality import canny, edge_f1, table


def column(*places: int) -> torch.Tensor:
    """Return edges (1, 1, 16, 16) in these columns."""
    edges = torch.zeros(1, 1, 16, 16)
    edges[..., list(places)] = 1
    return edges


def test_edges_count_within_two_pixels():
    wanted = column(4)
    assert edge_f1(column(4), wanted).item() == edge_f1(column(6), wanted).item() == 1
    assert edge_f1(column(7), wanted).item() == 0
    assert edge_f1(column(4, 12), wanted).item() == pytest.approx(2 / 3), "precision 1/2, recall 1"
    assert edge_f1(wanted, column(4, 12)).item() == pytest.approx(2 / 3)
    assert edge_f1(column(), wanted).item() == 0 and edge_f1(column(), column()).item() == 1


def test_the_edge_of_a_square_is_its_rim():
    images = -torch.ones(1, 3, 32, 32)
    images[..., 8:24, 8:24] = 1
    edges = canny(images)
    assert edges.shape == (1, 1, 32, 32) and set(edges.unique().tolist()) == {0.0, 1.0}
    assert edges[..., 7:10, 12:20].any() and not edges[..., 11:21, 11:21].any()


def test_the_table_has_a_column_for_each_control():
    names = "recall_at_1", "recall_at_5", "ground"
    kept = {name: {"value": 0.5, "interval": [0.25, 0.75]} for name in names}
    found = {
        "without": {**kept, "edges": {"value": 0.2}}, "autoencoder": {"value": 0.9},
        "canny": {**kept, "asked": {"value": 0.8}, "another": {"value": 0.3}},
    }  # fmt: skip
    lines = table(found, ["canny"]).split("\n")
    assert "| the edges asked for | 0.80 |" in lines
    assert "| the edges asked for, without control | 0.20 |" in lines
    assert "| concept, R@1 | 50 % [25, 75] | 50 % [25, 75] |" in lines

"""The depth network's names: transformers' DPT-hybrid, MiDaS's own file, and the published ones."""

import pytest
import torch
from diffusers_models import noise, same, shapes

from golden_cases import manifest
from ldm.checkpoint.layouts import UNUSED, ldm_to_parts, part_to_ldm, to_ldm
from ldm.checkpoint.parts import PARTS
from ldm.errors import WrongModelError
from ldm.models.midas import MiDaSInference

PREFIX = "depth_model."
NARROW = dict(
    stem=16, channels=[32, 64, 96], depths=[2, 1, 2], groups=4, width=48, depth=3, num_heads=4,
    taps=[1, 2], grid=4, classes=5, features=24,
)  # fmt: skip


def transformers_state() -> dict[str, torch.Tensor]:
    """Return the state of `Intel/dpt-hybrid-midas`, full size, without memory."""
    from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

    backbone = BitConfig(
        global_padding="same", layer_type="bottleneck", depths=[3, 4, 9],
        out_features=["stage1", "stage2", "stage3"], embedding_dynamic_padding=True,
    )  # fmt: skip
    config = DPTConfig(
        is_hybrid=True, backbone_config=backbone, backbone_out_indices=[2, 5, 8, 11],
        neck_hidden_sizes=[256, 512, 768, 768], neck_ignore_stages=[0, 1], readout_type="project",
        backbone_featmap_shape=[1, 1024, 24, 24], reassemble_factors=[1, 1, 1, 0.5],
    )  # fmt: skip
    with torch.device("meta"):
        return DPTForDepthEstimation(config).state_dict()


def published() -> dict[str, torch.Tensor]:
    return noise(MiDaSInference(sizes=NARROW), PREFIX)


def test_transformers_names_are_the_published_ones_but_for_the_head():
    layout = {name: shape for name, (shape, _) in manifest("v2-midas").items() if name.startswith(PREFIX)}
    theirs = transformers_state()
    ours = shapes(part_to_ldm("depth_estimator", theirs))
    head = PREFIX + "model.pretrained.model.head."
    assert layout == ours | {head + "weight": (1000, 768), head + "bias": (1000,)}
    with torch.device("meta"):
        file = {name: torch.empty(shape) for name, shape in layout.items()}
    parts = ldm_to_parts(file)
    assert shapes(parts["depth_estimator"]) == shapes(theirs)
    assert list(parts[UNUSED]) == [head + "weight", head + "bias"]


def test_there_and_back():
    file = published()
    parts = ldm_to_parts(file)
    assert set(parts) == {"depth_estimator", UNUSED}
    assert same(to_ldm(parts), file)


def test_query_key_and_value_are_the_rows_of_one_matrix():
    file = published()
    theirs = ldm_to_parts(file)["depth_estimator"]
    rows = file[PREFIX + "model.pretrained.model.blocks.1.attn.qkv.weight"]
    for i, part in enumerate(("query", "key", "value")):
        got = theirs[f"dpt.encoder.layer.1.attention.attention.{part}.weight"]
        assert torch.equal(got, rows[48 * i : 48 * (i + 1)])


def test_a_file_of_its_own_gets_its_prefix():
    file = published()
    bare = {name.removeprefix("depth_model.model."): x for name, x in file.items()}
    assert same(to_ldm({"": bare}), file)
    theirs = ldm_to_parts(file)["depth_estimator"]
    without_head = {name: x for name, x in file.items() if ".model.head." not in name}
    assert same(to_ldm({"": theirs}), without_head)


def test_the_pooler_of_old_files_is_left_out():
    theirs = ldm_to_parts(published())["depth_estimator"]
    pooler = {"dpt.pooler.dense.weight": torch.ones(2, 2), "dpt.pooler.dense.bias": torch.ones(2)}
    want = part_to_ldm("depth_estimator", theirs)
    assert same(part_to_ldm("depth_estimator", theirs | pooler), want)


@pytest.mark.parametrize("name", ["dpt.embeddings.patch_embeddings.projection.weight", "neck.convs.4.weight"])
def test_other_networks_are_refused(name: str):
    theirs = ldm_to_parts(published())["depth_estimator"] | {name: torch.ones(1)}
    with pytest.raises(WrongModelError, match=name):
        part_to_ldm("depth_estimator", theirs)


def test_an_incomplete_attention_is_refused():
    theirs = ldm_to_parts(published())["depth_estimator"]
    del theirs["dpt.encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(WrongModelError, match="lacks .*key.bias"):
        part_to_ldm("depth_estimator", theirs)


def test_the_part_has_its_folder_and_prefix():
    assert PARTS["depth_estimator"].prefix == PREFIX

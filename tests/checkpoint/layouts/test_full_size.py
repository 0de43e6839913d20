"""Every published file, full size on the meta device: names and shapes are those of diffusers' modules."""

import pytest
import torch
from diffusers_models import UNETS, parts_of, shapes
from torch import Tensor

from golden_cases import manifest
from ldm.checkpoint.layouts import UNUSED, ldm_to_parts, part_to_ldm, to_ldm
from ldm.checkpoint.parts import PARTS


def published(layout: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype))
            for name, (shape, dtype) in manifest(layout).items()
        }


@pytest.mark.few(1)
@pytest.mark.parametrize("layout", UNETS)
def test_a_published_file_has_the_tensors_of_the_modules_of_diffusers(layout: str):
    got = ldm_to_parts(published(layout))
    want = parts_of(layout)
    assert set(want) == got.keys() - {UNUSED}
    for part in want:
        assert shapes(got[part]) == shapes(want[part])


@pytest.mark.few(3)
@pytest.mark.parametrize("layout", UNETS)
def test_the_modules_of_diffusers_have_the_tensors_of_a_published_file(layout: str):
    want = {name: shape for name, (shape, _) in manifest(layout).items()}
    aside = ldm_to_parts(published(layout))[UNUSED]
    for part, tensors in parts_of(layout).items():
        prefix = PARTS[part].prefix
        got = shapes(part_to_ldm(part, tensors))
        assert got == {name: s for name, s in want.items() if name.startswith(prefix) and name not in aside}


@pytest.mark.parametrize("layout", UNETS)
def test_a_published_file_comes_back_from_its_parts(layout: str):
    file = published(layout)
    back = to_ldm(ldm_to_parts(file))
    assert shapes(back) == shapes(file)
    assert {name: x.dtype for name, x in back.items()} == {name: x.dtype for name, x in file.items()}


def test_what_diffusers_has_no_place_for_is_listed():
    aside = ldm_to_parts(published("v2-inference"))[UNUSED]
    text = [name for name in aside if name.startswith("cond_stage_model.")]
    last_block = [name for name in text if ".resblocks.23." in name]
    assert len(last_block) == 12
    assert set(text) - set(last_block) == {
        "cond_stage_model.model.logit_scale",
        "cond_stage_model.model.text_projection",
    }
    assert len(aside) - len(text) == 12, "the noise schedule"

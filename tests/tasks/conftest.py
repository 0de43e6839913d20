"""The tiny complete model of the golden cases."""

import pytest

from golden_cases import cases
from ldm import load_model


@pytest.fixture(scope="session")
def tiny_model():
    """Return it in float32 on the CPU."""
    files = cases("e2e_txt2img")[0].files
    return load_model(files["config"], files["checkpoint"], device="cpu", dtype="float32")

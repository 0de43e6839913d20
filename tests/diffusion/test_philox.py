"""Philox against its authors' vectors, its normal numbers against their distribution and against CUDA's."""

import numpy as np
import pytest
import torch

from golden_cases import Case, cases
from ldm.diffusion.philox import cuda_normal, normal, philox

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN = [  # Random123, tests/kat_vectors: counter, key, words
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert philox(counter, key)[:, 0].tolist() == list(words)


def test_many_blocks_are_those_of_one_at_a_time():
    counter, key = PI
    counters = np.array([counter, (0,) * 4, (1, 2, 3, 4)]).T
    together = philox(tuple(counters), key)
    assert together.shape == (4, 3) and together.dtype == np.uint32
    for i in range(3):
        assert np.array_equal(together[:, i : i + 1], philox(tuple(counters[:, i]), key))


def test_normal_numbers_are_those_of_the_formula():
    words = philox((np.arange(50_000), 0, 0, 0), (1, 2))
    corners = np.array([0, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1], np.uint32)
    words = np.concatenate([words, np.stack([*np.meshgrid(corners, corners)] * 2).reshape(4, -1)], axis=1)
    u, v = (words[0::2] + 0.5) / 2**32, (words[1::2] + 0.5) / 2**32
    radius = np.sqrt(-2 * np.log(u))
    expected = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], axis=1)
    error = np.abs(normal(words).reshape(-1, 4) - expected.reshape(4, -1).T)
    assert error.max() < 3e-7  # of rounding values up to 6.8 to single precision


def test_normal_numbers_have_the_moments_and_tails_of_a_gaussian():
    z = normal(philox((np.arange(250_000), 0, 0, 0), (42, 0))).astype(float)
    n = len(z)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * (variance / n) ** 0.5
    for limit, part in ((1, 0.317311), (2, 0.0455003), (3, 0.0026998), (4, 6.334e-5)):
        assert abs((np.abs(z) > limit).mean() - part) < 4 * (part / n) ** 0.5
    for lag in range(1, 6):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / n**0.5


@pytest.mark.parametrize("case", cases("rng_cuda_imitation"), ids=lambda case: case.name)
def test_cuda_numbers_are_those_of_another_imitation(case: Case):
    for seed in case.config["seeds"]:
        for i, shape in enumerate(case.config["shapes"]):
            drawn = cuda_normal(seed, i, int(np.prod(shape)))
            assert drawn.dtype == np.float32
            case.check(f"seed{seed}.draw{i}.first256", drawn[:256])
            case.check(f"seed{seed}.draw{i}.every97th", drawn[::97])


def test_cuda_numbers_are_those_that_a_user_printed():
    """The corners of `torch.randn([1, 64, 2048])` with seed 42 on a GPU: pytorch/pytorch issue 158398."""
    first = cuda_normal(42, 0, 2048)
    shown = [0.1940, 2.1614, -0.1721, 1.4540, -2.7733, -0.8932]
    np.testing.assert_allclose(first[[0, 1, 2, -3, -2, -1]], shown, atol=6e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 10**15])
def test_cuda_numbers_are_those_of_cuda(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for i, shape in enumerate([(4, 8, 8), (1, 4, 64, 64), (4, 13, 7), (4, 96, 96)]):
        drawn = torch.randn(shape, generator=generator, device="cuda").flatten().cpu().numpy()
        np.testing.assert_allclose(cuda_normal(seed, i, drawn.size), drawn, atol=1e-5)

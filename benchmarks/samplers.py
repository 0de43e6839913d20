"""Draw the error of every sampler against its number of network evaluations: docs/images/samplers.png.

    python benchmarks/samplers.py

The data are a mixture of three Gaussians, of which the best denoiser and the path of every number are
known exactly (tests/gaussian_data.py), so the error is the sampler's alone. Each sampler takes its default
schedule, as `--sampler NAME --steps N` does.

Deterministic samplers: root mean square distance from the exact end of the same path. The first-order step
from time 0 to the clean end, which nearly all share, is taken by both and so left out.
Samplers that add noise: distance between the distributions of the samples and of the data (Wasserstein-2).
As many draws from the data themselves have the dashed distance. lcm asks a perfect consistency model.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gaussian_data import MIXTURE, SCHEDULE  # noqa: E402
from ldm.samplers import SAMPLERS, Sampler, make_sampler, sample_loop  # noqa: E402

EVALUATIONS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
NOISY = ("euler_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm")
LCM_MOST = 8
PATHS = 400


def levels(count: int) -> Tensor:
    """Return the log odds of evenly spaced quantiles, (1, 1, 1, count)."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) / count).logit().view(1, 1, 1, -1)


def run(sampler: Sampler, start: Tensor, denoise=MIXTURE.denoise) -> Tensor:
    """Return the end of a run."""
    *_, step = sample_loop(sampler, denoise, start, None)
    return step.x_t


def path_error(sampler: Sampler) -> float:
    """Return the distance from the ends of the exact paths."""
    u = levels(PATHS)
    end = run(sampler, MIXTURE.at(u, sampler.timesteps[0]))
    nodes = getattr(sampler, "nodes", None)
    if nodes is None or nodes.sigmas[-1] > 0:  # keeps the noise of time 0, as published
        exact = MIXTURE.at(u, 0)
    else:
        t = sampler.timesteps[-1]
        exact = MIXTURE.denoise(MIXTURE.at(u, t), torch.tensor([t], dtype=torch.float64)).x_0
    return rms(end - exact)


def distribution_error(sampler: Sampler, samples: int, denoise=MIXTURE.denoise) -> float:
    """Return the Wasserstein-2 distance of samples from the data."""
    u = levels(samples)
    end = run(sampler, MIXTURE.at(u, sampler.timesteps[0]), denoise)
    return rms(end.flatten().sort().values - MIXTURE.at(u, None).flatten())


def fair_error(samples: int) -> float:
    """Return that distance for draws from the data themselves, the mean of a few."""
    exact = MIXTURE.at(levels(samples), None).flatten()
    picks = (torch.randint(samples, (samples,)) for _ in range(20))
    return sum(rms(exact[pick].sort().values - exact) for pick in picks) / 20


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def measure(evaluations: list[int], samples: int) -> dict[str, dict[int, float]]:
    """Return the error of every sampler at every number of evaluations that it can make."""
    table = {}
    for name, row in SAMPLERS.items():
        table[name] = {}
        for n in evaluations:
            if name == "lcm" and n > LCM_MOST:
                continue
            torch.manual_seed(0)
            sampler = make_sampler(name, SCHEDULE, n, spacing=getattr(row.cls, "count_exact_spacing", None))
            assert_exact(sampler, n)
            if name in NOISY:
                denoise = MIXTURE.distilled if name == "lcm" else MIXTURE.denoise
                table[name][n] = distribution_error(sampler, samples, denoise)
            else:
                table[name][n] = path_error(sampler)
    return table


def assert_exact(sampler: Sampler, evaluations: int) -> None:
    if sampler.evaluations() != evaluations:
        name = type(sampler).__name__
        raise SystemExit(f"{name} takes {sampler.evaluations()} evaluations for {evaluations}")


def draw(table: dict[str, dict[int, float]], floor: float, target: Path) -> None:
    """Draw both kinds side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    kinds = ([name for name in table if name not in NOISY], list(NOISY))
    titles = ("deterministic: distance from the exact path", "with noise: distance from the data")
    for axis, names, title in zip(axes, kinds, titles, strict=True):
        names = sorted(names, key=lambda name: -list(table[name].values())[-1])
        for name, marker in zip(names, "osv^D<>Px*", strict=False):
            counts, errors = zip(*table[name].items(), strict=True)
            axis.plot(counts, errors, marker=marker, markersize=4, lw=1.4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=title)
        counts = sorted({n for errors in table.values() for n in errors})
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[1].axhline(floor, color="grey", ls="--", lw=1, label="draws from the data")
    axes[0].set_ylabel("error")
    for axis, corner in zip(axes, ("lower left", "upper right"), strict=True):
        axis.legend(frameon=False, fontsize=8, loc=corner)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "samplers.png")
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--samples", type=int, default=20_000, help="of the samplers that add noise")
    args = parser.parse_args()
    table = measure(args.evaluations, args.samples)
    print("sampler      ", *(f"{n:>8}" for n in args.evaluations))
    for name, errors in table.items():
        print(f"{name:13s}", *(f"{errors[n]:8.1e}" if n in errors else "       -" for n in args.evaluations))
    floor = fair_error(args.samples)
    print(f"draws from the data: {floor:.1e}")
    draw(table, floor, args.out)
    print(f"drawn: {args.out}")


if __name__ == "__main__":
    main()

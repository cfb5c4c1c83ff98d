"""Cost of the demo suite compared with a plain loop that computes the same images and scores.

    python benchmarks/evaluation.py CURATED [--prompts 128] [--rounds 3] [--scratch FOLDER]

CURATED is a curate artifact (`ls -d runs/demo/curate/*`). Each is timed as a whole process, from imports to
distances. The plain loop is one process with one thread; it writes no files and computes no intervals. The
suite has one actor with one thread in each pool, and writes all images and scores, the table with its intervals, the
image grids and the MLflow run.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE, ADAPTER = str(ROOT / "models/toy_klein"), str(ROOT / "models/toy_asymflow")
MODELS = ("latent", "lifted", "trained")
REPEATS, STEPS, BATCH = 3, 16, 32


def plain(curated: str, prompts: int) -> None:
    """Run the loop: one model after the other, batch by batch, then the suite's measures on the images in memory."""
    import torch

    torch.set_num_threads(1)
    from itertools import islice

    from asymflow.adapters.basis import SUBSPACE
    from asymflow.metrics.sliced_wasserstein import image_sliced_wasserstein
    from asymflow.metrics.spectrum import distance_of_spectra, high_frequency_power, radial_spectrum
    from asymflow.subspace import Subspace
    from pipelines.core.artifacts import load_artifact
    from pipelines.data.images import decode_image, to_array
    from pipelines.evaluate.prompts import read_held_out
    from pipelines.sample.parameters import SamplingParameterSettings
    from pipelines.sample.sampler import load_sampler, read_defaults

    held_out = list(islice(read_held_out(load_artifact(curated, "curate")), prompts))
    texts = [prompt.text for prompt, _ in held_out]
    real = torch.stack([torch.from_numpy(to_array(decode_image(data)).copy()) for _, data in held_out])
    real = real.permute(0, 3, 1, 2).float() / 127.5 - 1
    defaults, subspace = read_defaults(ADAPTER), Subspace.load(f"{ADAPTER}/{SUBSPACE}")
    parameters = SamplingParameterSettings(height=64, width=64, steps=STEPS).resolve(defaults)
    seeds = list(range(prompts * REPEATS))
    requested = [text for text in texts for _ in range(REPEATS)]
    spectrum = radial_spectrum(real)
    for model in MODELS:
        sampler = load_sampler(model, BASE, Path(ADAPTER) if model == "trained" else None, subspace, defaults, "cpu")
        images = torch.cat(
            [sampler(requested[i : i + BATCH], seeds[i : i + BATCH], parameters) for i in range(0, len(seeds), BATCH)]
        )
        radial = torch.stack([radial_spectrum(image[None]) for image in images])
        power = [high_frequency_power(image[None]) for image in images]
        found = [distance_of_spectra(radial[r::REPEATS].mean(0), spectrum) for r in range(REPEATS)]
        wasserstein = [image_sliced_wasserstein(images[r::REPEATS], real) for r in range(REPEATS)]
        print(model, sum(power) / len(power), found, wasserstein)


def suite(curated: str, prompts: int, scratch: str) -> None:
    settings = {
        "run.storage": f"{scratch}/runs", "base": BASE, "adapter": ADAPTER, "curated": curated,
        "prompts.count": prompts, "images_per_prompt": REPEATS, "sampling.steps": STEPS,
        "resources.workers": 1, "resources.batch": BATCH, "scorers.spectrum.resources.workers": 1,
    }  # fmt: skip
    config = Path(scratch) / "config.yaml"
    config.write_text("suite: demo\n")
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), str(config), *(f"{k}={v}" for k, v in settings.items())]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curated")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain(options.curated, options.prompts)
        return
    times: dict[str, list[float]] = {"plain loop": [], "demo suite": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(options.rounds):
        scratch = tempfile.mkdtemp()
        start = time.perf_counter()
        again = [sys.executable, __file__, options.curated, "--prompts", str(options.prompts), "--plain"]
        subprocess.run(again, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        times["plain loop"].append(time.perf_counter() - start)
        start = time.perf_counter()
        suite(options.curated, options.prompts, scratch)
        times["demo suite"].append(time.perf_counter() - start)
        shutil.rmtree(scratch)
    base = statistics.median(times["plain loop"])
    count = options.prompts * REPEATS * len(MODELS)
    print(f"{count} images of 64 x 64, {STEPS} steps; medians of {options.rounds} rounds")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:12} {median:7.1f} s  {median / base:.3f}  ({', '.join(f'{s:.1f}' for s in seconds)})")


if __name__ == "__main__":
    main()

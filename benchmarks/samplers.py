"""Quality of the shipped toy by sampler and number of evaluations, against held-out images of the demo.

    python benchmarks/samplers.py --curated runs/demo/curate/ID [--images 64] [--evaluations 4 8 16 32 64]

Every sampler starts from the same noise, and has the same number of evaluations of the guided velocity (Heun's method
takes two per step, but for the last). Printed per row: the distances of `jobs/evaluate.py demo` to as many held-out
images, and the seconds per image. A file of results, `--out`, is extended row by row: a run that was stopped goes on.
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline  # noqa: E402
from asymflow.metrics.efficientnet import EfficientNetFeatures  # noqa: E402
from asymflow.metrics.frechet import FrechetStatistics, frechet_distance  # noqa: E402
from asymflow.metrics.sliced_wasserstein import image_sliced_wasserstein  # noqa: E402
from asymflow.metrics.spectrum import distance_of_spectra, radial_spectrum  # noqa: E402
from asymflow.srgb import SrgbSpace  # noqa: E402
from pipelines.core.artifacts import load_artifact  # noqa: E402
from pipelines.data.images import decode_image, to_array  # noqa: E402
from pipelines.evaluate.prompts import read_held_out  # noqa: E402

import diffusers  # noqa: E402  # isort: skip

MODELS = Path(__file__).parents[1] / "models"
SAMPLERS = {
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "SA-Solver": ("SASolverScheduler", {}),
}
"""Schedulers of diffusers and their options"""
MEASURES = ("sliced_wasserstein", "high_pass", "spectrum", "imagenet_frechet")


class Distances:
    """Distances of sampled images to real ones, as `jobs/evaluate.py demo` defines them.

    Args:
        real: Held-out images, uint8 (B, 3, H, W).
    """

    def __init__(self, real: Tensor):
        self.features = EfficientNetFeatures()
        self.real, self.of_real = SrgbSpace().encode8(real), self._statistics(real)

    def __call__(self, images: Tensor) -> list[float]:
        """Return the distances in the order of MEASURES.

        Args:
            images: Sampled images, uint8 (B, 3, H, W).

        Returns:
            Distances; lower is better.
        """
        sampled = SrgbSpace().encode8(images)
        of_patches = image_sliced_wasserstein(sampled, self.real)
        spectra = distance_of_spectra(radial_spectrum(sampled), radial_spectrum(self.real))
        frechet = frechet_distance(self._statistics(images), self.of_real)
        return [of_patches["raw"], of_patches["high_pass"], spectra, frechet]

    def _statistics(self, images: Tensor) -> FrechetStatistics:
        features = self.features(images)
        return FrechetStatistics(features.shape[1]).update(features)


def sample(pipeline: AsymFlux2KleinPipeline, prompts: list[str], steps: int, batch: int) -> Tensor:
    """Return images, uint8 (B, 3, H, W): the noise of an image depends on its index alone."""
    made = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        made.append(pipeline(part, num_inference_steps=steps, generator=generators, output_type="pt").images)
    return (torch.cat(made) * 255).round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curated", required=True, help="artifact of the demo's curate step")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--out", type=Path, default=Path("runs/samplers.jsonl"))
    options = parser.parse_args()

    held_out = list(islice(read_held_out(load_artifact(options.curated, "curate")), options.images))
    real = [torch.tensor(to_array(decode_image(image))).movedim(-1, 0) for _, image in held_out]
    distances = Distances(torch.stack(real))
    prompts = [prompt.text for prompt, _ in held_out]
    pipeline = AsymFlux2KleinPipeline.from_pretrained(MODELS / "toy_klein", adapter=MODELS / "toy_asymflow")
    pipeline.set_progress_bar_config(disable=True)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = {(row["sampler"], row["evaluations"], row["images"]): row for row in map(json.loads, lines)}
    for evaluations in options.evaluations:
        for name, (scheduler, arguments) in SAMPLERS.items():
            key = (name, evaluations, len(prompts))
            if key in rows:
                continue
            pipeline.scheduler = getattr(diffusers, scheduler)(**arguments)
            steps = (evaluations + 1) // 2 if name == "Heun" else evaluations
            started = time.perf_counter()
            images = sample(pipeline, prompts, steps, options.batch)
            seconds = (time.perf_counter() - started) / len(prompts)
            row = dict(zip(("sampler", "evaluations", "images"), key, strict=True)) | {"seconds": seconds}
            rows[key] = row | dict(zip(MEASURES, distances(images), strict=True))
            with options.out.open("a") as file:
                print(json.dumps(rows[key]), file=file)

    print(f"{len(prompts)} images, {torch.get_num_threads()} threads")
    print(f"{'sampler':<20}{'evaluations':>12}{'s per image':>12}" + "".join(f"{name:>20}" for name in MEASURES))
    for evaluations in options.evaluations:
        for name in SAMPLERS:
            row = rows[name, evaluations, len(prompts)]
            values = "".join(f"{row[measure]:>20.4f}" for measure in MEASURES)
            print(f"{name:<20}{evaluations:>12}{row['seconds']:>12.3f}{values}")


if __name__ == "__main__":
    main()

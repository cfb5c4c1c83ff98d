"""Variance of the gradient by noise level, with and without variance reduction: is the teacher's forward pass worth it?

    python benchmarks/gradient_variance.py BASE ADAPTER CURATED [--finetune ARTIFACT] [--out FILE.png]

The same images are given many draws of noise at each noise level. For each draw, the finetune's objective is
differentiated twice: plain flow matching, and the variance-reduced loss without a perceptual term. With lambda = 0 both
are the same loss, except below sigma = 0.05. Both are measured at the untrained lift
of BASE and at ADAPTER, on the first training images of CURATED, a curate artifact (`ls -d runs/demo/curate/*`).
`--finetune` names a finished finetune, at whose checkpoints lambda is measured, too (`checkpoints.keep_every` keeps
some permanently).

The table has for each noise level (it is written beside the figure as a text file):

    variance    trace of the gradient's covariance over noise, variance reduced over plain, with its 95 % interval
    signal      squared length of the mean gradient over that trace, for plain flow matching and for variance reduction
    bias        length of the difference of both mean gradients over the length of the plain one
    lambda      mean over images and patches

Variance reduction adds the teacher's forward pass, about a third of a plain step (`benchmarks/train_step.py`). It is
worth its cost where the variance falls below three quarters.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.adapters import restore  # noqa: E402
from asymflow.adapters.basis import find_subspace  # noqa: E402
from asymflow.adapters.files import read_adapter  # noqa: E402
from asymflow.models.adapted import AdaptedModel  # noqa: E402
from asymflow.models.flux2 import PixelFlux2  # noqa: E402
from asymflow.models.text import pad_embeddings  # noqa: E402
from asymflow.objectives import FinetuneObjective  # noqa: E402
from pipelines.core.artifacts import Artifact, load_artifact  # noqa: E402
from pipelines.core.base_models import load_image_encoder, load_text_encoder  # noqa: E402
from pipelines.core.text_table import format_table  # noqa: E402
from pipelines.data.datasets import decode_batch, read_rows  # noqa: E402
from pipelines.sample.sampler import load_transformer  # noqa: E402
from pipelines.train.checkpoint import folder_of, list_checkpoints  # noqa: E402
from pipelines.train.finetune.config import FinetuneSettings  # noqa: E402
from pipelines.train.finetune.model import adapt  # noqa: E402
from pipelines.viz.figures import new_figure  # noqa: E402

SIGMAS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98)
GROUP = 4
"""Draws in a group; each group gives an estimate of the variance of its own, and their spread the interval"""
Z = 1.96


@dataclass(frozen=True)
class Samples:
    """Images (B, 3, H, W) in [-1, 1], their latent tokens, and the embeddings of their captions."""

    images: Tensor
    z_0: Tensor
    text: Tensor
    mask: Tensor


@dataclass
class Spread:
    """Running mean and variance of vectors, in groups of GROUP; at most two vectors are in memory."""

    traces: list[float] = field(default_factory=list)
    """Of the covariance, an unbiased estimate from each group"""
    count: int = 0
    total: Tensor | None = None
    _sum: Tensor | None = None
    _squares: float = 0.0

    def add(self, vector: Tensor) -> None:
        self._sum = vector.clone() if self._sum is None else self._sum.add_(vector)
        self._squares += float(vector.square().sum())
        self.count += 1
        if self.count % GROUP == 0:
            self.traces.append((self._squares - float(self._sum.square().sum()) / GROUP) / (GROUP - 1))
            self.total = self._sum if self.total is None else self.total + self._sum
            self._sum, self._squares = None, 0.0

    @property
    def trace(self) -> float:
        return fmean(self.traces)

    @property
    def mean_square(self) -> float:
        """Squared length of the mean, corrected for the noise of its estimate; at least 0."""
        assert self.total is not None
        count = len(self.traces) * GROUP
        return max(0.0, float((self.total / count).square().sum()) - self.trace / count)


@dataclass(frozen=True)
class Level:
    """Results at one noise level of one model."""

    sigma: float
    ratio: float
    low: float
    high: float
    signal_plain: float
    signal_reduced: float
    bias: float
    lam: float


def measure(model: AdaptedModel, samples: Samples, sigma: float, draws: int, kappa: float | None) -> Level:
    """Draw noise for the same samples, and compare the gradients of both losses, which see the same noise."""
    plain = FinetuneObjective(model, "flow_matching")
    reduced = FinetuneObjective(model, "variance_reduced", kappa=kappa)
    spreads = {"plain": Spread(), "reduced": Spread(), "difference": Spread()}
    lams = []
    for seed in range(draws):
        arguments = sample_arguments(samples, sigma, seed)
        of_plain, _ = gradient(plain, arguments)
        of_reduced, terms = gradient(reduced, arguments)
        lams.append(float(terms["lambda"].mean()))
        spreads["plain"].add(of_plain)
        spreads["reduced"].add(of_reduced)
        spreads["difference"].add(of_reduced - of_plain)
    logs = [math.log(a / b) for a, b in zip(spreads["reduced"].traces, spreads["plain"].traces, strict=True)]
    error = Z * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    ratio = spreads["reduced"].trace / spreads["plain"].trace
    signal = {name: spread.mean_square / spread.trace for name, spread in spreads.items() if spread.trace}
    bias = math.sqrt(spreads["difference"].mean_square / (spreads["plain"].mean_square or math.nan))
    return Level(
        sigma, ratio, ratio * math.exp(-error), ratio * math.exp(error),
        signal["plain"], signal["reduced"], bias, fmean(lams),
    )  # fmt: skip


def mean_lambda(model: AdaptedModel, samples: Samples, sigma: float, draws: int) -> float:
    objective = FinetuneObjective(model, "variance_reduced")
    with torch.no_grad():
        terms = [objective(*sample_arguments(samples, sigma, seed))[1] for seed in range(draws)]
    return fmean(float(one["lambda"].mean()) for one in terms)


def sample_arguments(samples: Samples, sigma: float, seed: int) -> tuple[Tensor, ...]:
    """Arguments of the objective: the samples with the noise of a seed."""
    noise = torch.randn(samples.images.shape, generator=torch.Generator().manual_seed(seed))
    levels = torch.full((len(samples.images),), sigma)
    return samples.images, noise, levels, samples.z_0, samples.text, samples.mask


def gradient(objective: FinetuneObjective, arguments: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    loss, terms = objective(*arguments)
    found = torch.autograd.grad(loss, list(objective.model.trainable().values()))
    return torch.cat([part.flatten() for part in found]), terms


def read_samples(base: str, curated: Artifact, count: int) -> Samples:
    """Read the first training images, and encode them and their captions."""
    rows = (
        (image, caption)
        for file in curated.files("train", ".parquet")
        for group in read_rows(file, ["image", "caption"])
        for image, caption in zip(group["image"], group["caption"], strict=True)
    )
    encoded, captions = zip(*islice(rows, count), strict=True)
    images = decode_batch(list(encoded))
    text, mask = pad_embeddings([e.float() for e in load_text_encoder(base, "cpu", 512).encode(list(captions))])
    return Samples(images, load_image_encoder(base, "cpu").encode(images).float(), text, mask)


def lift(base: str, adapter: Path) -> AdaptedModel:
    """Return the model at the start of the adapter's training, except for the random initial values of LoRA."""
    tensors, _ = read_adapter(adapter)
    model = PixelFlux2.from_latent(load_transformer(base, "cpu"), find_subspace(adapter, tensors))
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")]
    if ranks:
        torch.manual_seed(0)
        model.add_lora(ranks[0], ranks[0], dropout=0.0)
    return model


def stages(base: str, adapter: Path, finetune: str) -> Iterator[tuple[str, AdaptedModel, bool]]:
    """Return name and model of each stage of the training, and whether its gradients are measured or lambda alone."""
    yield "lift", lift(base, adapter), True
    if finetune:
        config = load_artifact(finetune, "finetune").manifest["config"]
        settings = FinetuneSettings.model_validate({**config, "base": base, "resources": {"zero_stage": 0}})
        for checkpoint in list_checkpoints(folder_of(finetune)):
            model = adapt(settings, load_transformer(base, "cpu"), find_subspace(adapter, read_adapter(adapter)[0]))
            average = checkpoint.read("average")
            with torch.no_grad():
                for name, parameter in model.trainable().items():
                    parameter.copy_(average[name])
            yield f"step {checkpoint.step}", model, False
    yield "trained", restore(load_transformer(base, "cpu"), adapter), True


def table(found: dict[str, list[Level]], lams: dict[str, dict[float, float]]) -> str:
    rows = [("model", "sigma", "variance", "95 %", "signal, plain", "signal, reduced", "bias", "lambda")]
    for name, levels in found.items():
        for level in levels:
            rows.append((
                name, f"{level.sigma:g}", f"{level.ratio:.3f}", f"{level.low:.3f} to {level.high:.3f}",
                f"{level.signal_plain:.3g}", f"{level.signal_reduced:.3g}", f"{level.bias:.2f}", f"{level.lam:.3f}",
            ))  # fmt: skip
    for name, by_sigma in lams.items():
        if name not in found:
            rows += [(name, f"{sigma:g}", "", "", "", "", "", f"{lam:.3f}") for sigma, lam in by_sigma.items()]
    return format_table(rows)


def plot(found: dict[str, list[Level]], lams: dict[str, dict[float, float]], file: Path) -> None:
    figure = new_figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, levels in found.items():
        sigmas, ratios = [level.sigma for level in levels], [level.ratio for level in levels]
        left.plot(sigmas, ratios, "o-", label=name)
        left.fill_between(sigmas, [level.low for level in levels], [level.high for level in levels], alpha=0.2)
    left.axhline(1, color="grey", linestyle=":")
    left.set(xlabel="sigma", ylabel="variance-reduced / plain", ylim=(0, None))
    left.set_title("Variance of the gradient over noise")
    for name, by_sigma in lams.items():
        right.plot(list(by_sigma), list(by_sigma.values()), "o-", label=name)
    right.set(xlabel="sigma", ylabel="lambda", ylim=(0, 1.02), title="Lambda over training")
    for axes in (left, right):
        axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder of the latent model")
    parser.add_argument("adapter", type=Path, help="folder of a pixel adapter for it")
    parser.add_argument("curated", help="curate artifact")
    parser.add_argument("--finetune", default="", help="finetune artifact, for lambda at its checkpoints")
    parser.add_argument("--out", type=Path, default=Path("gradient_variance.png"), help="figure to write")
    parser.add_argument("--images", type=int, default=8, help="samples in the batch")
    parser.add_argument("--draws", type=int, default=24, help=f"of noise, a multiple of {GROUP}")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    parser.add_argument("--kappa", type=lambda text: None if text == "none" else float(text), default=0.3,
                        help="fading of variance reduction at low noise (Eq. 21), or none")  # fmt: skip
    args = parser.parse_args()
    if args.draws < GROUP or args.draws % GROUP:
        parser.error(f"--draws {args.draws}: must be a multiple of {GROUP}")
    samples = read_samples(args.base, load_artifact(args.curated, "curate"), args.images)
    found: dict[str, list[Level]] = {}
    lams: dict[str, dict[float, float]] = {}
    for name, model, with_gradients in stages(args.base, args.adapter, args.finetune):
        model.eval()  # without dropout: the noise is all that varies
        lams[name] = {}
        for sigma in args.sigmas:
            if with_gradients:
                level = measure(model, samples, sigma, args.draws, args.kappa)
                found.setdefault(name, []).append(level)
                lams[name][sigma] = level.lam
            else:
                lams[name][sigma] = mean_lambda(model, samples, sigma, GROUP)
            print(f"{name}, sigma {sigma:g}: lambda {lams[name][sigma]:.3f}", file=sys.stderr)
    plot(found, lams, args.out)
    text = table(found, lams)
    args.out.with_suffix(".txt").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()

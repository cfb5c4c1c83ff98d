"""Success of edits of the toy: an emoji with its ground, and the instruction "on pink" or another ground.

    python benchmarks/edit_success.py base= edits=runs/toy/finetune/ID/adapter

Each argument is NAME=ADAPTER, or NAME= for the latent base itself. All models see the same source as the reference
image, the same instruction and the same noise. Two sets of edits are measured: pairs of grounds that the data of
`make_demo_data.py edits=N` leaves out of an emoji (--edits N), and emoji that no data of the toy has. A table shows the
mean and its standard error of both measures of `asymflow.metrics.ground_edit`, and the share of successes.

The first rows are known answers: the source returned as it is, the true image, and the true image after the autoencoder
of the base, which no latent model can be better than on average.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.adapters import SUBSPACE, restore  # noqa: E402
from asymflow.guidance import Guidance  # noqa: E402
from asymflow.metrics.ground_edit import GroundEdit, ground_edit  # noqa: E402
from asymflow.models.lifted import LatentModel  # noqa: E402
from asymflow.patches import patchify  # noqa: E402
from asymflow.sampling import latent_velocity, pixel_noise, sample_latents, sample_pixels  # noqa: E402
from asymflow.subspace import Subspace  # noqa: E402
from pipelines.data.images import decode_image, fit_to_size, to_array  # noqa: E402
from pipelines.sample.sampler import load_decoder, load_encode, load_transformer  # noqa: E402
from pipelines.toy.data import BACKGROUNDS, draw_emoji, emoji_stems, ground_pairs, render_emoji  # noqa: E402
from pipelines.viz.image_grid import side_by_side, to_pil_images  # noqa: E402

MODELS = Path(__file__).parents[1] / "models"
SIDE, MARGIN = 64, 1
UNSEEN = [f"{code:X}" for code in range(0x1F680, 0x1F6A5)]
"""Vehicles, of which the toy's data has none"""
Edit = Callable[[Tensor, list[Tensor], Tensor], Tensor]
"""Maps sources (B, 3, H, W) in [-1, 1], embeddings of the instructions and noise to edited images in [-1, 1]"""


@dataclass(frozen=True)
class Task:
    """One edit with its answer."""

    stem: str
    before: str
    asked: str

    @property
    def instruction(self) -> str:
        return f"on {self.asked}"

    def image(self, ground: str) -> Tensor:
        """Return the emoji on a ground, as curate makes it: uint8 (3, H, W)."""
        fitted = fit_to_size(decode_image(render_emoji(self.stem, ground)), SIDE, SIDE)
        return torch.from_numpy(to_array(fitted).copy()).permute(2, 0, 1)

    def masks(self) -> tuple[Tensor, Tensor]:
        """Return the masks of the ground and of the object, without the pixels near to the object's edge."""
        alpha = np.asarray(draw_emoji(self.stem).getchannel("A").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        opaque = torch.from_numpy((alpha >= 250).astype(np.float32))
        clear = torch.from_numpy((alpha <= 5).astype(np.float32))
        return erode(clear), erode(opaque)

    def measure(self, edited: Tensor) -> GroundEdit:
        """Measure an edited image, uint8 (3, H, W)."""
        red, green, blue = bytes.fromhex(BACKGROUNDS[self.asked][1:])
        return ground_edit(edited, self.image(self.before), (red, green, blue), *self.masks())


def erode(mask: Tensor) -> Tensor:
    """Remove MARGIN pixels at the edge of a mask (H, W)."""
    padded = torch.nn.functional.pad(1 - mask[None, None], (MARGIN,) * 4, value=0.0)
    return torch.nn.functional.max_pool2d(padded, 2 * MARGIN + 1, 1)[0, 0] == 0


def make_tasks(stems: list[str], left_out: int, seed: int, count: int) -> list[Task]:
    """Return random edits of some emoji, without the first `left_out` pairs of grounds of each."""
    everything = [Task(stem, *pair) for stem in stems for pair in ground_pairs(stem, seed)[left_out:]]
    some = random.Random(seed).sample(everything, len(everything))
    return list(islice((task for task in some if all(mask.sum() >= 20 for mask in task.masks())), count))


def load_edit(base: str, adapter: str, subspace: Subspace, empty: Tensor, options: argparse.Namespace) -> Edit:
    """Return the function that edits with the base, or with an adapter of any kind on it."""
    decoder, space, transformer = load_decoder(base, "cpu"), subspace.space, load_transformer(base, "cpu")
    model = restore(transformer, adapter, subspace) if adapter else None
    guidance = Guidance(options.guidance, options.orthogonal)
    grid = (SIDE // subspace.patch_size,) * 2

    def latent(sources: Tensor, text: list[Tensor], noise: Tensor) -> Tensor:
        references = decoder.encode(sources)[:, None]
        predict = latent_velocity(transformer, grid, references)
        if model:
            predict = partial(model, grid=grid, references=references)
        tokens = patchify(noise, subspace.patch_size, subspace.layout) @ subspace.A
        z_0 = sample_latents(predict, tokens, text, empty, guidance, options.steps, options.latent_shift)
        return decoder.decode(z_0, grid)

    def pixel(sources: Tensor, text: list[Tensor], noise: Tensor) -> Tensor:
        references = space.encode(sources)[:, None]
        found: object = model
        return sample_pixels(found, noise, text, empty, guidance, options.steps, options.shift, references)  # type: ignore[arg-type]

    return latent if model is None or isinstance(model, LatentModel) else pixel


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def run(edit: Edit, tasks: list[Task], embeddings: dict[str, Tensor], options: argparse.Namespace) -> list[Tensor]:
    """Return the edited images, uint8."""
    edited: list[Tensor] = []
    for start in range(0, len(tasks), options.batch):
        part = tasks[start : start + options.batch]
        sources = torch.stack([task.image(task.before) for task in part]).float() / 127.5 - 1
        noise = pixel_noise(options.seed, range(start, start + len(part)), SIDE, SIDE)
        edited += to_bytes(edit(sources, [embeddings[task.instruction] for task in part], noise))
    return edited


def row(name: str, tasks: list[Task], edited: list[Tensor]) -> str:
    """Return a line of the table."""
    found = [task.measure(image) for task, image in zip(tasks, edited, strict=True)]
    cells = []
    for values, digits in (([f.color_distance for f in found], 3), ([f.object_error for f in found], 1)):
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):>10.{digits}f} +- {error:.{digits}f}")
    success = sum(f.is_success for f in found) / len(found)
    return f"{name:<28}{cells[0]:>20}{cells[1]:>20}{success:>10.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=ADAPTER", help="a folder, or empty for the base")
    parser.add_argument("--base", default=str(MODELS / "toy_klein"))
    parser.add_argument(
        "--subspace", default=str(MODELS / "toy_asymflow" / SUBSPACE), help="of the latent models' noise"
    )
    parser.add_argument("--count", type=int, default=128, help="edits of each set")
    parser.add_argument("--edits", type=int, default=24, help="edits of each emoji in the training data")
    parser.add_argument("--seed", type=int, default=0, help="of the training data, and of the noise")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--orthogonal", type=float, default=0.0)
    parser.add_argument("--shift", type=float, default=3.55)
    parser.add_argument("--latent-shift", type=float, default=1.5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--grid", help="PNG with the first eight edits of each set")
    options = parser.parse_args()
    for given in options.models:
        name, separator, adapter = given.partition("=")
        if not separator or (adapter and not Path(adapter, "config.json").is_file()):
            parser.error(f"{given!r}: expected NAME=ADAPTER with an adapter's folder, or NAME= for the base")

    subspace = Subspace.load(options.subspace)
    encode, decoder = load_encode(options.base, "none", "cpu"), load_decoder(options.base, "cpu")
    *texts, empty = encode([*(f"on {ground}" for ground in BACKGROUNDS), ""])
    embeddings = {f"on {ground}": text.float() for ground, text in zip(BACKGROUNDS, texts, strict=True)}
    edits = {
        name: load_edit(options.base, adapter, subspace, empty.float(), options)
        for name, _, adapter in (given.partition("=") for given in options.models)
    }
    sets = {
        "emoji of the data, other grounds": make_tasks(emoji_stems(), options.edits, options.seed, options.count),
        "other emoji": make_tasks(UNSEEN, 0, options.seed, options.count),
    }
    for title, tasks in sets.items():
        print(f"\n{title} ({len(tasks)} edits)")
        print(f"{'':<28}{'ground, Oklab':>20}{'object, levels':>20}{'success':>10}")
        sources, answers = (
            [task.image(ground) for task, ground in zip(tasks, grounds, strict=True)]
            for grounds in ([task.before for task in tasks], [task.asked for task in tasks])
        )
        with torch.no_grad():
            z_0 = decoder.encode(torch.stack(answers).float() / 127.5 - 1)
            decoded = list(to_bytes(decoder.decode(z_0, (SIDE // subspace.patch_size,) * 2)))
        known = {"(source)": sources, "(answer)": answers, "(answer, autoencoder)": decoded}
        found = {name: run(edit, tasks, embeddings, options) for name, edit in edits.items()}
        for name, images in (known | found).items():
            print(row(name, tasks, images), flush=True)
        if options.grid:
            shown = {"source": sources, "answer": answers, **found}
            columns = {n: to_pil_images(torch.stack(images[:8]).float() / 127.5 - 1) for n, images in shown.items()}
            file = Path(options.grid).with_stem(f"{Path(options.grid).stem}_{list(sets).index(title)}")
            side_by_side(columns, [task.instruction for task in tasks[:8]]).save(file)
            print(file)


if __name__ == "__main__":
    main()

"""Sampling for the demo page: the images of a request, with previews while they are sampled."""

import base64
import io
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from PIL import Image
from torch import Tensor

from pipelines.sample.metadata import encode_with_metadata
from pipelines.sample.page_tabs import Request
from pipelines.sample.page_uploads import PageStore
from pipelines.sample.safety import SafetyFilter
from pipelines.sample.sampler import PairSampler
from pipelines.sample.step import metadata_of, models_of
from pipelines.viz.image_grid import to_pil_images

_PREVIEW = 512
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """A finished step of a model."""

    model: str
    done: int
    total: int
    preview: str | None
    """Denoised image as a data URL; None: as before"""


@dataclass(frozen=True)
class Result:
    """Images of a request, as files that Gradio serves unchanged; others it would encode itself, without metadata."""

    files: dict[str, Path]
    """PNG by model"""
    compared: tuple[Path, Path] | None
    """Input and pixel model's image, or the latent model's and the pixel model's, of one size"""
    metadata: dict[str, Any]


class DemoSampler:
    """Samples the images of requests."""

    def __init__(self, sampler: PairSampler, safety: SafetyFilter, store: PageStore):
        self.sampler, self.safety, self.store = sampler, safety, store
        self.running = threading.Lock()
        """Held while images are sampled, one request at a time"""

    def sample(self, request: Request, report: Callable[[Progress], None]) -> Result:
        """Sample an image per model.

        Args:
            request: the request.
            report: called before the first step of a model and after each.

        Returns:
            The images, and their metadata with timings.
        """
        settings, parameters, edit = request.settings, request.parameters, request.edit
        prompt, seed = settings.prompts[0], settings.seeds[0]
        metadata = metadata_of(self.sampler, prompt, seed, parameters)
        if request.tab.images:
            metadata |= {"tab": request.tab.name, "strength": edit.strength}
        total = math.ceil(parameters.steps * edit.strength - 1e-9)
        files, images, seconds, flagged = {}, {}, {}, {}
        for model in models_of(settings):
            count = 0

            def on_step(step: int, x_0: Tensor | None, model: str = model) -> None:
                nonlocal count
                count += 1
                report(Progress(model, count, total, None if x_0 is None else self._preview(x_0)))

            report(Progress(model, 0, total, None))
            sample = self._sampler_of(model, request)  # loaded before the clock starts
            start = time.perf_counter()
            image = sample(on_step)
            seconds[model] = round(time.perf_counter() - start, 2)
            (images[model],), (flagged[model],) = self.safety([image])
            row = {"model": model, "flagged": flagged[model], **metadata}
            edited = edit.image is not None
            png = encode_with_metadata(images[model], row, mark=settings.provenance.mark, edited=edited)
            files[model] = self._store(png, f"{model}-{seed}")
        before = edit.image or (edit.references[0] if edit.references else images.get("latent"))
        compared = None if before is None else (self._resized(before, images["pixel"].size), files["pixel"])
        return Result(files, compared, {"seconds": seconds, "flagged": flagged, **metadata})

    def _sampler_of(self, model: str, request: Request) -> Callable[[Any], Image.Image]:
        settings, parameters = request.settings, request.parameters
        if request.tab.images:
            edit = getattr(self.sampler, f"edit_{model}")
            return lambda on_step: edit(settings.prompts[0], settings.seeds[0], parameters, request.edit, on_step)
        sample = getattr(self.sampler, model)
        return lambda on_step: to_pil_images(sample(settings.prompts, settings.seeds, parameters, on_step))[0]

    def _preview(self, x_0: Tensor) -> str:
        (image,), _ = self.safety(to_pil_images(x_0))
        image.thumbnail((_PREVIEW, _PREVIEW))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=90)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Path:
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "PNG")
        return self._store(buffer.getvalue(), "before")

    def _store(self, png: bytes, name: str) -> Path:
        self.store.has_room()  # removes old files
        path = self.store.folder / f"{name}-{uuid4().hex}.png"  # Gradio reads it later
        path.write_bytes(png)
        return path


class Stopped(Exception):
    """Nobody waits for the result."""


def stream(work: Callable[[Callable[[Any], None]], T]) -> Iterator[Any]:
    """Run work in a thread and yield what it reports, then its result.

    If the iterator is closed, the work ends at its next report, by an exception.

    Args:
        work: called with the function to report with.

    Yields:
        The reports, and last the result.

    Raises:
        Exception: that of the work.
    """
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    closed = threading.Event()

    def report(event: Any) -> None:
        if closed.is_set():
            raise Stopped
        events.put(("report", event))

    def run() -> None:
        try:
            events.put(("result", work(report)))
        except BaseException as error:  # raised again where the iterator is read
            events.put(("error", error))

    threading.Thread(target=run).start()
    try:
        while True:
            kind, value = events.get()
            if kind == "error":
                raise value
            yield value
            if kind == "result":
                return
    finally:
        closed.set()

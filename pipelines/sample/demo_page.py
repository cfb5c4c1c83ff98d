"""A page to try a pixel model on: a prompt's picture, beside that of the latent model it was made from."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from pipelines.core.config import ConfigError, validate
from pipelines.sample.config import Safety, SampleSettings
from pipelines.sample.metadata import encode_with_metadata
from pipelines.sample.page_guard import Busy, Guard, Turns, names_of
from pipelines.sample.safety import SafetyFilter, check_safety
from pipelines.sample.sampler import BothSampler, open_sampler
from pipelines.sample.step import check, check_model, made_from, models_of
from pipelines.viz.image_grid import to_pil_images

TITLES = {"latent": "Latent base", "pixel": "Pixel model"}
_ABOUT = "# AsymFlow\nThe pixel model draws the picture itself, without an autoencoder."
_BESIDE = " Beside it, from the same noise, is the picture of the latent base that it was made from."
_SMALL = 256
MAX_PROMPT = 2000
"""Characters; of 512 tokens, the most that the model reads, hardly a prompt has more"""
# Pictures fill their square frame, small ones in whole pixels instead of a blur.
_CSS = """
#latent, #pixel {{ aspect-ratio: 1; max-height: 75vh }}
#latent img, #pixel img {{ width: 100%; height: 100%; object-fit: contain; image-rendering: {rendering} }}
#timing {{ min-height: 4rem }}
#details {{ font-size: 0.75rem }}
"""


@contextmanager
def open_page(
    base: str,
    adapter: str,
    device: str = "cpu",
    safety: Safety | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[str]:
    """Serve the page, and give its address; port 0 is any free one. `allowed_hosts`: other names that it is called by.

    Raises ConfigError, as far as it can before a model is loaded, and OSError for files that cannot be read.
    """
    safety = safety or Safety()
    check_model(base, adapter, latent=bool(adapter))
    check_safety(safety)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}: PyTorch finds no GPU here")
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="asymflow-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")  # so that no picture outlives the page
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        # Gradio asks the page whether it is up, and no proxy may answer for it.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},127.0.0.1,localhost,{host}"
        gradio = _gradio()
        from starlette.middleware import Middleware  # comes with Gradio

        try:
            artist = Artist(open_sampler(base, adapter, device), SafetyFilter(safety, device), Path(folder))
        except ValueError as error:
            raise ConfigError(f"base={base!r}, adapter={adapter!r}: {error}") from error
        page = build_page(gradio, artist)
        small = max(artist.painter.defaults.height, artist.painter.defaults.width) <= _SMALL
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            # The system's fonts: of its own bold one Gradio ships only a few letters.
            app_kwargs={"middleware": [Middleware(Guard, names=names_of(host, allowed_hosts))]},
            theme=gradio.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
            css=_CSS.format(rendering="pixelated" if small else "auto"),
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            run_history=False,
            share=False,
            show_error=True,
            ssr_mode=False,
        )
        try:
            yield url
        finally:
            page.close(verbose=False)


class Artist:
    """Draws what a form asks for. The pictures are files, which Gradio serves as they are; what is no file it encodes
    itself, without what the picture says about itself."""

    def __init__(self, painter: BothSampler, safety: SafetyFilter, folder: Path):
        self.painter, self.safety, self.folder = painter, safety, folder

    def read(self, prompt: str, seed: int, **form: Any) -> SampleSettings:
        """Raises ConfigError: a browser keeps to the form's limits, others need not."""
        if not prompt.strip():
            raise ConfigError("prompt: missing; say what to draw")
        for name, text in {"prompt": prompt, "negative_prompt": form.get("negative_prompt") or ""}.items():
            if len(text) > MAX_PROMPT:
                raise ConfigError(f"{name}: has {len(text)} characters; at most {MAX_PROMPT} are allowed")
        source = {"base": self.painter.base, "adapter": self.painter.adapter}
        settings = validate(SampleSettings, {**source, "prompts": prompt, "seeds": [seed], **form})
        drawing = settings.drawing(self.painter.defaults)
        for name, (low, high) in limits_of(self.painter).items():
            if not low <= getattr(drawing, name) <= high:
                raise ConfigError(f"{name}={getattr(drawing, name)}: must be from {low} to {high}")
        check(settings)
        return settings

    def draw(
        self, settings: SampleSettings, progress: Callable[[str, int], None]
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        """The PNG of each model, and what they were made from; `progress(model, steps done)` is told of each step."""
        prompts, seeds, drawing = settings.prompts, settings.seeds, settings.drawing(self.painter.defaults)
        about = made_from(self.painter, prompts[0], seeds[0], drawing)
        files, seconds, flagged = {}, {}, {}
        for model in models_of(settings):
            progress(model, 0)
            if model == "latent":
                _ = self.painter.latent  # loaded before the clock starts
            start = time.perf_counter()
            images = getattr(self.painter, model)(
                prompts, seeds, drawing, lambda step, model=model: progress(model, step + 1)
            )
            seconds[model] = round(time.perf_counter() - start, 2)
            (picture,), (flagged[model],) = self.safety(to_pil_images(images))
            files[model] = self.folder / f"{model}-{seeds[0]}-{uuid4().hex}.png"  # Gradio reads it after this returns
            row = {"model": model, "flagged": flagged[model], **about}
            files[model].write_bytes(encode_with_metadata(picture, row, mark=settings.provenance.mark))
        return files, {"seconds": seconds, "flagged": flagged, **about}


def limits_of(painter: BothSampler) -> dict[str, tuple[float, float]]:
    """(lowest, highest) of what decides how long an image takes, by the names of `SamplingParameters`."""
    defaults, side = painter.defaults, painter.patch_size
    return {
        "steps": (1, 2 * defaults.num_inference_steps),
        "guidance": (1, max(10, defaults.guidance_scale)),
        "width": (side, 2 * defaults.width),
        "height": (side, 2 * defaults.height),
    }


def build_page(gradio: Any, artist: Artist) -> Any:
    """The gradio.Blocks."""
    defaults, beside = artist.painter.defaults, bool(artist.painter.adapter)
    models, side = ("latent", "pixel") if beside else ("pixel",), artist.painter.patch_size

    turns, limits = Turns(), limits_of(artist.painter)

    def slider(name: str, value: float, step: float) -> Any:
        low, high = limits[name]
        return gradio.Slider(low, high, value, step=step, label=name.capitalize(), elem_id=name)

    with gradio.Blocks(title="AsymFlow", analytics_enabled=False) as page:
        gradio.Markdown(_ABOUT + (_BESIDE if beside else ""))
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                form = {
                    "prompt": gradio.Textbox(
                        label="Prompt", placeholder="a red fox", elem_id="prompt", max_length=MAX_PROMPT
                    ),
                    "negative_prompt": gradio.Textbox(
                        label="Negative prompt", elem_id="negative_prompt", max_length=MAX_PROMPT
                    ),
                    "seed": gradio.Number(0, label="Seed", precision=0, elem_id="seed"),
                    "steps": slider("steps", defaults.num_inference_steps, 1),
                    "guidance": slider("guidance", defaults.guidance_scale, 0.1),
                    "width": slider("width", defaults.width, side),
                    "height": slider("height", defaults.height, side),
                }
                if beside:
                    form["latent"] = gradio.Checkbox(True, label="Draw the latent base's picture too", elem_id="beside")
                button = gradio.Button("Draw", variant="primary", elem_id="draw")
            with gradio.Column(scale=5):
                with gradio.Row():
                    pictures = {
                        model: gradio.Image(
                            label=TITLES[model], format="png", interactive=False, buttons=["download"], elem_id=model
                        )
                        for model in models
                    }
                timing = gradio.Markdown(elem_id="timing")
                with gradio.Accordion("Made from", open=False):
                    details = gradio.JSON(show_label=False, elem_id="details")

        def draw(
            values: dict[Any, Any],
            request: gradio.Request,
            progress=gradio.Progress(),  # noqa: B008 (where Gradio looks for it)
        ):
            try:
                settings = artist.read(**{name: values[field] for name, field in form.items()})
            except ConfigError as error:
                raise gradio.Error(str(error), print_exception=False) from None
            total = settings.drawing(defaults).steps

            def tell(model: str, done: int) -> None:
                if not page.is_running:  # closed, and its process could not end before this does
                    raise gradio.Error("the page was closed", print_exception=False)
                progress((done, total), desc=TITLES[model])

            try:
                with turns.take(request.client.host if request.client else "", lambda: page.is_running):
                    files, about = artist.draw(settings, tell)
            except Busy as error:
                raise gradio.Error(str(error), print_exception=False) from None
            shown = {
                picture: gradio.update(value=files.get(model), visible=model in files)
                for model, picture in pictures.items()
            }
            return {**shown, timing: _timing(about), details: about}

        triggers = [button.click, form["prompt"].submit]
        outputs = [*pictures.values(), timing, details]
        waiting = turns.waiting + 1  # one at a time, but in turns of our own
        gradio.on(triggers, draw, set(form.values()), outputs, concurrency_limit=waiting, show_progress_on=timing)
    page.queue(max_size=2 * turns.waiting)
    return page


def _timing(about: dict[str, Any]) -> str:
    notes = {model: ", painted over: the safety classifier flagged it" * bad for model, bad in about["flagged"].items()}
    return "; ".join(f"{TITLES[model]}: {seconds} s{notes[model]}" for model, seconds in about["seconds"].items())


def _free_port(host: str, port: int) -> int:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host={host!r}, port={port}: cannot be listened on: {error}") from None


def _gradio() -> Any:
    try:
        import gradio  # here, since it is an extra, and reads its folder from the environment when it is imported
    except ModuleNotFoundError:
        raise ConfigError("the page needs Gradio: pip install 'asymflow[ui]'") from None
    return gradio

"""Demo page: sample from a pixel model and its latent base in the browser."""

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
from pipelines.sample.page_guard import Busy, FairQueue, Guard, names_of
from pipelines.sample.safety import SafetyFilter, check_safety
from pipelines.sample.sampler import PairSampler, open_sampler
from pipelines.sample.step import check, check_model, metadata_of, models_of
from pipelines.viz.image_grid import to_pil_images

TITLES = {"latent": "Latent base", "pixel": "Pixel model"}
_ABOUT = "# AsymFlow\nThe pixel model generates the image directly, without an autoencoder."
_BESIDE = " The image beside it is its latent base's, from the same noise."
_SMALL = 256
MAX_PROMPT = 2000
"""Characters; a prompt of 512 tokens, the model's maximum, hardly has more"""
# Images fill their square frame; small ones are scaled by nearest neighbor.
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
    """Serve the page, and yield its address.

    Args:
        base: folder of the latent model or a merged pipeline.
        adapter: folder or repository of the adapter; empty for a merged pipeline.
        device: device of the models.
        safety: safety classifier.
        host: address to listen on.
        port: port; 0 for any free one.
        allowed_hosts: other host names of the page.

    Raises:
        ConfigError: the settings are unsound, as far as known before a model is loaded.
        OSError: files cannot be read.
    """
    safety = safety or Safety()
    check_model(base, adapter, latent=bool(adapter))
    check_safety(safety)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}: PyTorch finds no GPU here")
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="asymflow-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")  # deleted with the page
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        # Gradio's own request to the page must not go through a proxy.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},127.0.0.1,localhost,{host}"
        gradio = _gradio()
        from starlette.middleware import Middleware  # comes with Gradio

        try:
            demo_sampler = DemoSampler(open_sampler(base, adapter, device), SafetyFilter(safety, device), Path(folder))
        except ValueError as error:
            raise ConfigError(f"base={base!r}, adapter={adapter!r}: {error}") from error
        page = build_page(gradio, demo_sampler)
        small = max(demo_sampler.sampler.defaults.height, demo_sampler.sampler.defaults.width) <= _SMALL
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            # System fonts: Gradio's own bold font has only a few letters.
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


class DemoSampler:
    """Samples the images of a form.

    Images are files, which Gradio serves unchanged; other images it would encode itself, without their metadata.
    """

    def __init__(self, sampler: PairSampler, safety: SafetyFilter, folder: Path):
        self.sampler, self.safety, self.folder = sampler, safety, folder

    def read(self, prompt: str, seed: int, **form: Any) -> SampleSettings:
        """Return the validated settings of a form. Raises ConfigError: requests need not keep to the form's limits."""
        if not prompt.strip():
            raise ConfigError("prompt: missing; describe an image")
        for name, text in {"prompt": prompt, "negative_prompt": form.get("negative_prompt") or ""}.items():
            if len(text) > MAX_PROMPT:
                raise ConfigError(f"{name}: has {len(text)} characters; at most {MAX_PROMPT} are allowed")
        source = {"base": self.sampler.base, "adapter": self.sampler.adapter}
        settings = validate(SampleSettings, {**source, "prompts": prompt, "seeds": [seed], **form})
        parameters = settings.resolve(self.sampler.defaults)
        for name, (low, high) in parameter_limits(self.sampler).items():
            if not low <= getattr(parameters, name) <= high:
                raise ConfigError(f"{name}={getattr(parameters, name)}: must be from {low} to {high}")
        check(settings)
        return settings

    def sample(
        self, settings: SampleSettings, progress: Callable[[str, int], None]
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        """Sample an image per model.

        Args:
            settings: validated form.
            progress: called with (model, finished steps) after each step.

        Returns:
            The PNG files by model, and their metadata with timings.
        """
        prompts, seeds, parameters = settings.prompts, settings.seeds, settings.resolve(self.sampler.defaults)
        metadata = metadata_of(self.sampler, prompts[0], seeds[0], parameters)
        files, seconds, flagged = {}, {}, {}
        for model in models_of(settings):
            progress(model, 0)
            if model == "latent":
                _ = self.sampler.latent  # loaded before the clock starts
            start = time.perf_counter()
            images = getattr(self.sampler, model)(
                prompts, seeds, parameters, lambda step, model=model: progress(model, step + 1)
            )
            seconds[model] = round(time.perf_counter() - start, 2)
            (image,), (flagged[model],) = self.safety(to_pil_images(images))
            files[model] = self.folder / f"{model}-{seeds[0]}-{uuid4().hex}.png"  # Gradio reads it later
            row = {"model": model, "flagged": flagged[model], **metadata}
            files[model].write_bytes(encode_with_metadata(image, row, mark=settings.provenance.mark))
        return files, {"seconds": seconds, "flagged": flagged, **metadata}


def parameter_limits(sampler: PairSampler) -> dict[str, tuple[float, float]]:
    """Return (minimum, maximum) of the parameters that determine the sampling time."""
    defaults, side = sampler.defaults, sampler.patch_size
    return {
        "steps": (1, 2 * defaults.num_inference_steps),
        "guidance": (1, max(10, defaults.guidance_scale)),
        "width": (side, 2 * defaults.width),
        "height": (side, 2 * defaults.height),
    }


def build_page(gradio: Any, demo_sampler: DemoSampler) -> Any:
    """Return the page as gradio.Blocks."""
    defaults, beside = demo_sampler.sampler.defaults, bool(demo_sampler.sampler.adapter)
    models, side = ("latent", "pixel") if beside else ("pixel",), demo_sampler.sampler.patch_size

    queue, limits = FairQueue(), parameter_limits(demo_sampler.sampler)

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
                    form["latent"] = gradio.Checkbox(True, label="Also sample the latent base", elem_id="beside")
                button = gradio.Button("Generate", variant="primary", elem_id="draw")
            with gradio.Column(scale=5):
                with gradio.Row():
                    image_boxes = {
                        model: gradio.Image(
                            label=TITLES[model], format="png", interactive=False, buttons=["download"], elem_id=model
                        )
                        for model in models
                    }
                timing = gradio.Markdown(elem_id="timing")
                with gradio.Accordion("Metadata", open=False):
                    details = gradio.JSON(show_label=False, elem_id="details")

        def sample(
            values: dict[Any, Any],
            request: gradio.Request,
            progress=gradio.Progress(),  # noqa: B008 (where Gradio looks for it)
        ):
            try:
                settings = demo_sampler.read(**{name: values[field] for name, field in form.items()})
            except ConfigError as error:
                raise gradio.Error(str(error), print_exception=False) from None
            total = settings.resolve(defaults).steps

            def report(model: str, done: int) -> None:
                if not page.is_running:  # closed: the process cannot exit before this ends
                    raise gradio.Error("the page was closed", print_exception=False)
                progress((done, total), desc=TITLES[model])

            try:
                with queue.take(request.client.host if request.client else "", lambda: page.is_running):
                    files, metadata = demo_sampler.sample(settings, report)
            except Busy as error:
                raise gradio.Error(str(error), print_exception=False) from None
            shown = {
                box: gradio.update(value=files.get(model), visible=model in files) for model, box in image_boxes.items()
            }
            return {**shown, timing: _timing(metadata), details: metadata}

        triggers = [button.click, form["prompt"].submit]
        outputs = [*image_boxes.values(), timing, details]
        waiting = queue.waiting + 1  # `FairQueue` serializes the requests
        gradio.on(triggers, sample, set(form.values()), outputs, concurrency_limit=waiting, show_progress_on=timing)
    page.queue(max_size=2 * queue.waiting)
    return page


def _timing(metadata: dict[str, Any]) -> str:
    notes = {model: ", black: flagged by the safety classifier" * bad for model, bad in metadata["flagged"].items()}
    return "; ".join(f"{TITLES[model]}: {seconds} s{notes[model]}" for model, seconds in metadata["seconds"].items())


def _free_port(host: str, port: int) -> int:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host={host!r}, port={port}: cannot listen: {error}") from None


def _gradio() -> Any:
    try:
        import gradio  # optional, and reads its folder from the environment at import
    except ModuleNotFoundError:
        raise ConfigError("the page needs Gradio: pip install 'asymflow[ui]'") from None
    return gradio

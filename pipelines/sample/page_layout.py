"""Layout of the demo page: a form and outputs per tab, all built and run in one way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.core.config import ConfigError
from pipelines.sample.page_guard import Busy, FairQueue
from pipelines.sample.page_inputs import mask_editor, uploaded_image
from pipelines.sample.page_sampler import DemoSampler, Progress, Result, stream
from pipelines.sample.page_tabs import MAX_PROMPT, Request, Tab, parameter_limits, read_form, tabs_of
from pipelines.sample.page_uploads import FORMATS, MAX_REFERENCES, canvas_of, read_upload

TITLES = {"latent": "Latent base", "pixel": "Pixel model"}
_ABOUT = "# AsymFlow\nThe pixel model generates the image directly, without an autoencoder."
# Images fill their square frame; small ones are scaled by nearest neighbor.
CSS = """
.sampled {{ aspect-ratio: 1; max-height: 60vh }}
.sampled img {{ width: 100%; height: 100%; object-fit: contain }}
.sampled img, .compared img, .preview img {{ image-rendering: {rendering} }}
.preview img {{ width: 12rem; height: 12rem; object-fit: contain }}
.timing {{ min-height: 4rem }}
.details {{ font-size: 0.75rem }}
"""


def build_page(gradio: Any, demo_sampler: DemoSampler) -> Any:
    """Return the page as gradio.Blocks."""
    queue = FairQueue()
    with gradio.Blocks(title="AsymFlow", analytics_enabled=False) as page:
        gradio.Markdown(_ABOUT)
        with gradio.Tabs():
            for tab in tabs_of(demo_sampler.sampler):
                with gradio.Tab(tab.title, elem_id=f"{tab.name}-tab"):
                    _build_tab(gradio, page, tab, demo_sampler, queue)
    page.queue(max_size=2 * queue.waiting)
    return page


def _build_tab(gradio: Any, page: Any, tab: Tab, demo_sampler: DemoSampler, queue: FairQueue) -> None:
    beside = bool(demo_sampler.sampler.adapter)
    gradio.Markdown(tab.about if beside or tab.images else "")
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            form = _build_form(gradio, tab, demo_sampler, beside)
            button = gradio.Button("Generate", variant="primary", elem_id=f"{tab.name}-generate")
        with gradio.Column(scale=5):
            outputs = _build_outputs(gradio, tab, ("latent", "pixel") if beside else ("pixel",))

    def sample(
        values: dict[Any, Any],
        request: gradio.Request,
        progress=gradio.Progress(),  # noqa: B008 (where Gradio looks for it)
    ) -> Iterator[dict[Any, Any]]:
        client = request.client.host if request.client else ""
        with _shown_errors(gradio):
            form_values = {name: values[field] for name, field in form.items()}
            wanted = read_form(demo_sampler.sampler, tab, form_values)
            for event in stream(lambda report: _take_turn(page, queue, client, demo_sampler, wanted, report)):
                if isinstance(event, Result):
                    yield _show(gradio, event, outputs)
                    return
                progress((event.done, event.total), desc=TITLES[event.model])
                if event.preview is not None:
                    note = f"Denoised image after step {event.done} of {event.total}"
                    yield {outputs["preview"]: f'<img src="{event.preview}" alt="{note}"><p>{note}</p>'}

    waiting = queue.waiting + 1  # `FairQueue` serializes the requests
    gradio.on(
        [button.click, form["prompt"].submit], sample, set(form.values()), list(outputs.values()),
        concurrency_limit=waiting, show_progress_on=outputs["timing"],
    )  # fmt: skip


def _build_form(gradio: Any, tab: Tab, demo_sampler: DemoSampler, beside: bool) -> dict[str, Any]:
    """Return the inputs of a tab by their names in `read_form`."""
    sampler, form = demo_sampler.sampler, {}
    defaults, limits = sampler.defaults, parameter_limits(sampler)

    def named(name: str) -> dict[str, str]:
        return {"elem_id": f"{tab.name}-{name}", "label": name.capitalize().replace("_", " ")}

    def slider(name: str, value: float, step: float) -> Any:
        low, high = limits.get(name, (0.05, 1))
        return gradio.Slider(low, high, value, step=step, **named(name))

    if "image" in tab.images:
        form["image"] = uploaded_image(gradio, **named("image"))
    if "mask" in tab.images:
        form["mask"] = mask_editor(gradio, **named("mask"))

        def show(path: str | None) -> Any:
            with _shown_errors(gradio):
                if path is None:
                    return None
                return {"background": canvas_of(read_upload(path, "image")), "layers": [], "composite": None}

        changes = [form["image"].upload, form["image"].clear]
        gradio.on(changes, show, form["image"], form["mask"], show_progress="hidden")
    if "references" in tab.images:
        form["references"] = gradio.Gallery(
            type="filepath", format="png", file_types=[f".{name.lower()}" for name in (*FORMATS, "JPG")], columns=2,
            height=220, elem_id=f"{tab.name}-references", label=f"Reference images, up to {MAX_REFERENCES}",
        )  # fmt: skip
    form["prompt"] = gradio.Textbox(placeholder="a red fox", max_length=MAX_PROMPT, **named("prompt"))
    form["negative_prompt"] = gradio.Textbox(max_length=MAX_PROMPT, **named("negative_prompt"))
    form["seed"] = gradio.Number(0, precision=0, **named("seed"))
    if tab.strength is not None:
        form["strength"] = slider("strength", tab.strength, 0.05)
    form["steps"] = slider("steps", defaults.num_inference_steps, 1)
    form["guidance"] = slider("guidance", defaults.guidance_scale, 0.1)
    if "image" not in tab.images:
        for name in ("width", "height"):
            form[name] = slider(name, getattr(defaults, name), sampler.patch_size)
    if beside:
        form["latent"] = gradio.Checkbox(
            not tab.images, label="Also sample the latent base", elem_id=f"{tab.name}-beside"
        )
    return form


def _build_outputs(gradio: Any, tab: Tab, models: tuple[str, ...]) -> dict[str, Any]:
    """Return the outputs of a tab: images by model, and the others by name."""
    timing = gradio.Markdown(elem_id=f"{tab.name}-timing", elem_classes="timing")
    preview = gradio.HTML(elem_id=f"{tab.name}-preview", elem_classes="preview")
    with gradio.Row():
        outputs = {
            model: gradio.Image(
                label=TITLES[model], format="png", interactive=False, buttons=["download"],
                elem_id=f"{tab.name}-{model}", elem_classes="sampled", visible=model == "pixel" or not tab.images,
            )
            for model in models
        }  # fmt: skip
    outputs["compared"] = gradio.ImageSlider(
        label=f"{'Before' if tab.images else TITLES['latent']} / {TITLES['pixel']}", format="png", interactive=False,
        buttons=[], visible=False, elem_id=f"{tab.name}-compared", elem_classes="compared",
    )  # fmt: skip
    with gradio.Accordion("Metadata", open=False):
        outputs["details"] = gradio.JSON(show_label=False, elem_id=f"{tab.name}-details", elem_classes="details")
    return {**outputs, "timing": timing, "preview": preview}


def _take_turn(
    page: Any, queue: FairQueue, client: str, demo_sampler: DemoSampler, wanted: Request, report: Callable
) -> Result:
    def report_if_open(event: Progress) -> None:
        if not page.is_running:  # closed: the process cannot exit before this ends
            raise Busy("the page was closed")
        report(event)

    with queue.take(client, lambda: page.is_running), demo_sampler.running:
        return demo_sampler.sample(wanted, report_if_open)


def _show(gradio: Any, result: Result, outputs: dict[str, Any]) -> dict[Any, Any]:
    shown: dict[Any, Any] = {
        outputs[model]: gradio.update(value=result.files.get(model), visible=model in result.files)
        for model in TITLES
        if model in outputs
    }
    compared = gradio.update(value=result.compared, visible=result.compared is not None)
    about = result.metadata
    notes = {model: ", black: flagged by the safety classifier" * bad for model, bad in about["flagged"].items()}
    seconds = [f"{TITLES[model]}: {spent} s{notes[model]}" for model, spent in about["seconds"].items()]
    texts = {outputs["timing"]: "; ".join(seconds), outputs["details"]: about, outputs["preview"]: ""}
    return {**shown, outputs["compared"]: compared, **texts}


@contextmanager
def _shown_errors(gradio: Any) -> Iterator[None]:
    """Show errors of requests in the browser, in one line."""
    try:
        yield
    except (ConfigError, Busy) as error:
        raise gradio.Error(str(error), print_exception=False) from None

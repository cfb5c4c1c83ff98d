"""Model card of a finetune's adapter, for the adapter's folder and MLflow's model registry."""

from pathlib import Path

import yaml

from asymflow.adapters import SamplingDefaults
from asymflow.models.latent import family_of
from asymflow.subspace import Subspace
from pipelines.train.finetune.config import FinetuneSettings

CARD = "README.md"
_KINDS = {
    "asymflow": "A pixel-space flow model by the AsymFlow method (arXiv:2605.12964): no autoencoder is left",
    "ddt": "A pixel-space flow model that predicts u by a decoder head, a baseline of AsymFlow",
    "l2p": "A pixel-space flow model by L2P (arXiv:2605.12013): the outer blocks of its base, trained on pixels",
    "latent": "The latent model, finetuned on the same data as a baseline of AsymFlow",
}


def model_card(settings: FinetuneSettings, subspace: Subspace | None, defaults: SamplingDefaults) -> str:
    """Return the card as Markdown, with the header of model hubs.

    Args:
        settings: settings of the finetune.
        subspace: subspace of the model, None if it has none.
        defaults: default sampling parameters.
    """
    base = Path(settings.base).name
    header = {
        "base_model": base, "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["asymflow", "lora"]
    }  # fmt: skip
    optim, time, loss = settings.optim, settings.time, settings.loss
    rows = {
        "base": f"`{base}`, whose license also covers this adapter"
        + (f"; quantized in training ({settings.base_quantization})" if settings.base_quantization else ""),
        "trained values": _trained(settings),
        **({"started from": f"`{Path(settings.start_from).name}`"} if settings.start_from else {}),
        "steps, batch": f"{optim.steps}, {optim.batch}",
        "learning rate": f"{optim.lr:g}" + (f", last layer {optim.lr_proj_out:g}" if optim.lr_proj_out else ""),
        "loss": _loss(settings),
        "noise levels": f"logit-normal ({time.mean:g}, {time.std:g}), shift {time.shift:g}",
        "moving average": f"gamma {settings.ema.gamma:g}",
        "captions dropped": f"{loss.caption_dropout:g}",
    }
    if subspace is not None:
        rank, scale = subspace.A.shape[1], subspace.s
        rows["basis"] = f"rank {rank} of {subspace.A.shape[0]}, scale {scale:.6g}, patches {subspace.layout}"
        rows["color space"] = f"Oklab, mean {_numbers(subspace.oklab.mean)}, std {subspace.oklab.std:.6g}"
    rows["sampling"] = (
        f"{defaults.width} x {defaults.height}, {defaults.num_inference_steps} steps, guidance "
        f"{defaults.guidance_scale:g} (orthogonal part {defaults.orthogonal_guidance:g}), shift {defaults.shift:g}"
    )
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    front = yaml.safe_dump(header, sort_keys=False)
    about = f"# AsymFlow adapter for {base}\n\n{_KINDS[settings.model]}."
    return f"---\n{front}---\n\n{about}\n\n{table}\n{_usage(settings)}"


def without_header(card: str) -> str:
    """Return the card without its header, for places that show Markdown as it is."""
    return card.split("---\n", 2)[2].lstrip()


def _usage(settings: FinetuneSettings) -> str:
    if settings.model != "asymflow":
        return ""
    if Path(settings.base).is_dir() and not family_of(settings.base).pixel_pipeline:
        return (
            "\n## Usage\n\n"
            "    python jobs/sample.py jobs/configs/sample/klein_9b.yaml base=FOLDER_OF_THE_BASE adapter=THIS_FOLDER\n"
        )
    return (
        "\n## Usage\n\n"
        "    from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline\n\n"
        '    pipeline = AsymFlux2KleinPipeline.from_pretrained("FOLDER OF THE BASE", adapter="THIS FOLDER")\n'
        '    pipeline("a red fox in the snow").images[0].save("fox.png")\n'
    )


def _trained(settings: FinetuneSettings) -> str:
    if settings.model == "l2p":
        return f"first layer, {settings.l2p.blocks} blocks at each end, detailer"
    return f"LoRA of rank {settings.lora.rank}, first and last layers" if settings.lora else "first and last layers"


def _loss(settings: FinetuneSettings) -> str:
    loss = settings.loss
    if loss.kind == "flow_matching":
        return "flow matching"
    fading = f", kappa {loss.kappa:g}" if loss.kappa is not None else ""
    perceptual = f", LPIPS ({loss.perceptual.net}) times {loss.perceptual.weight:g}" if loss.perceptual else ""
    return f"variance-reduced by {loss.granularity}{fading}{perceptual}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)

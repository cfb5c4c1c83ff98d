"""Settings of a finetune whose inputs are missing, for plans, and a transformer small enough to count."""

from asymflow.models.geometry import KLEIN_9B
from pipelines.train.finetune.config import FinetuneSettings

TINY = {
    **KLEIN_9B,
    "num_layers": 2,
    "num_single_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": 48,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (8, 8, 8, 8),
}
KINDS = [("asymflow", "variance_reduced"), *((m, "flow_matching") for m in ("asymflow", "latent", "ddt", "l2p"))]


def settings_of(model: str = "asymflow", loss_kind: str = "variance_reduced", **sections) -> FinetuneSettings:
    """Return the paper's training on 32 GPUs with missing inputs, and changes to it."""
    given = {
        "resources": {"workers": 32, "use_gpu": True, "micro_batch": 1, **sections.pop("resources", {})},
        "loss": {"kind": loss_kind, **sections.pop("loss", {})},
    }
    if model == "l2p":
        given |= {"lora": None, "l2p": {"blocks": 1, "channels": 8}}
        sections.pop("lora", None)
    nowhere = {name: f"/nowhere/{name}" for name in ("curated", "encoded", "basis", "base")}
    return FinetuneSettings.model_validate({**nowhere, "model": model, **given, **sections})

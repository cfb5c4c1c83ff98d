import pytest
import torch
from diffusers import Flux2Transformer2DModel
from finetune_settings import KINDS, TINY, settings_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asymflow.models.geometry import KLEIN_9B
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import Perceptual
from pipelines.train.finetune.flops import PERCEPTUAL_COSTS, ImageFlops, image_flops, step_flops
from pipelines.train.finetune.model import adapt
from pipelines.train.finetune.perceptual import load_perceptual
from pipelines.train.finetune.task import make_objective


def test_objectives_that_take_more_and_less_operations():
    def flops_of(*kind: str, **resources) -> ImageFlops:
        return image_flops(settings_of(*kind, resources=resources), KLEIN_9B, 4096, 512)

    reduced, flow_matching, latent, ddt, _ = (flops_of(*kind) for kind in KINDS)
    assert latent.model < flow_matching.model < ddt.model
    assert flow_matching.model < reduced.model == reduced.executed
    checkpointed = flops_of(gradient_checkpointing=True)
    assert checkpointed.model == reduced.model
    assert 1.25 < checkpointed.executed / checkpointed.model < 4 / 3


@pytest.mark.parametrize("net", PERCEPTUAL_COSTS)
def test_cost_of_a_perceptual_network(net):
    perceptual = load_perceptual(Perceptual(net=net, weights="random")).to("meta")
    assert sum(p.numel() for p in perceptual.parameters()) == PERCEPTUAL_COSTS[net].values
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    picture = torch.zeros(1, 3, 1024, 1024, device="meta")
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        perceptual(picture.clone().requires_grad_(), picture).sum().backward()
    own = {p.untyped_storage()._cdata for p in perceptual.parameters()}
    kept_bytes = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert counter.get_total_flops() / 1024**2 == pytest.approx(PERCEPTUAL_COSTS[net].flops_per_pixel, rel=0.01)
    assert kept_bytes / 1024**2 == pytest.approx(PERCEPTUAL_COSTS[net].bytes_per_pixel, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_a_step_are_those_that_torch_counts(kind):
    loss = {"perceptual": {"net": "squeeze", "weights": "random"}} if kind[1] == "variance_reduced" else {}
    config = {**TINY, "num_attention_heads": 8, "attention_head_dim": 64, "axes_dims_rope": (16, 16, 16, 16)}
    settings = settings_of(*kind, loss=loss, lora={"rank": 8, "dropout": 0.0}, ddt={"heads": 4, "head_width": 48})
    subspace = Subspace(torch.eye(768, 128), 2.0, "channel_first", RELEASED, {})
    objective = make_objective(adapt(settings, Flux2Transformer2DModel(**config), subspace).train(), settings.loss)
    batch = Batch(
        images=torch.rand(2, 3, 128, 128) * 2 - 1,
        z_0=torch.randn(2, 64, 128),
        text=torch.randn(2, 32, TINY["joint_attention_dim"]),
        text_mask=torch.ones(2, 32).bool(),
        noise=torch.randn(2, 3, 128, 128),
        sigma=torch.rand(2),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(**batch.inputs())[0].backward()
    assert counter.get_total_flops() == pytest.approx(step_flops(settings, config, 64, 32, images=2), rel=0.01)


def test_tokens_of_references_cost_what_image_tokens_cost_but_in_the_perceptual_network():
    settings = settings_of()
    alone, edit, larger = (image_flops(settings, KLEIN_9B, *n) for n in ((1024, 512), (1024, 512, 1024), (2048, 512)))
    assert edit.student == larger.student
    assert edit.teacher == larger.teacher > alone.teacher
    assert edit.perceptual == alone.perceptual < larger.perceptual
    assert step_flops(settings, KLEIN_9B, 1024, 512, 3, 1024) == 3 * edit.model

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asymflow.models.adapted import AdaptedModel
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.models.geometry import KLEIN_9B, Network, count_flops, ddt_head, network, values_kept
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace

BATCH, SIDE, IMAGE_TOKENS, TEXT_TOKENS, RANK = 2, 128, 64, 24, 16
HEAD = {"blocks": 2, "heads": 4, "head_width": 48}
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
NETWORKS = {
    PixelFlux2: network(TINY, 768, RANK),
    LatentFlux2: network(TINY, 128, RANK),
    DdtFlux2: network(TINY, 768, RANK, head=True) + ddt_head(TINY, 768, **HEAD),
}


def make_model(kind: type[AdaptedModel], config: dict, device: str = "cpu", lora: int = RANK) -> AdaptedModel:
    with torch.device(device):
        transformer = Flux2Transformer2DModel(**config)
    subspace = Subspace(torch.eye(768, 128), 2.0, "channel_first", RELEASED, {})
    model = kind.from_latent(transformer, subspace, **(HEAD if kind is DdtFlux2 else {}))
    if lora:
        model.add_lora(lora, dropout=0.0)
    return model.train()


def run(model: AdaptedModel) -> torch.Tensor:
    shape = (BATCH, IMAGE_TOKENS, 128) if isinstance(model, LatentFlux2) else (BATCH, 3, SIDE, SIDE)
    text = torch.randn(BATCH, TEXT_TOKENS, TINY["joint_attention_dim"])
    return model(torch.randn(shape), torch.full((BATCH,), 0.5), text)


def shapes(net: Network) -> dict[str, tuple[int, int]]:
    return {layer.name: (layer.outputs, layer.inputs) for layer in net.linears if not layer.name.startswith("A")}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_matrix_of_the_model_is_there_and_trained_where_the_model_trains_it(kind):
    found = {}
    for name, p in make_model(kind, TINY).named_parameters():
        if p.ndim == 2 and not name.startswith("latent_modules."):
            name = name.removeprefix("transformer.").removesuffix(".weight").replace(".base_layer", "")
            found[name.replace(".default", "")] = (tuple(p.shape), p.requires_grad)
    net = NETWORKS[kind]
    assert shapes(net) == {name: shape for name, (shape, _) in found.items()}
    trained = {layer.name for layer in net.linears if layer.trained}
    assert trained == {name for name, (_, is_trained) in found.items() if is_trained}


def test_klein_9b_is_the_published_model():
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**KLEIN_9B)
    matrices = {n.removesuffix(".weight"): tuple(p.shape) for n, p in transformer.named_parameters() if p.ndim == 2}
    assert shapes(network(KLEIN_9B)) == matrices
    assert sum(p.numel() for p in transformer.parameters()) == 9_078_581_248
    trained = [layer for layer in network(KLEIN_9B, 768, 256).linears if layer.trained]
    assert sum(layer.inputs * layer.outputs for layer in trained) == 353_435_648


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts(kind, checkpointing):
    model = make_model(kind, TINY)
    if checkpointing:
        model.enable_gradient_checkpointing()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        u = run(model)
        forward = counter.get_total_flops()
        u.square().mean().backward()
        backward = counter.get_total_flops() - forward
    expected = count_flops(NETWORKS[kind], IMAGE_TOKENS, TEXT_TOKENS)
    unseen = BATCH * 2 * 768 * 128 * IMAGE_TOKENS if kind is PixelFlux2 else 0  # addmm_, which torch does not count
    assert forward + unseen == pytest.approx(BATCH * expected.forward, rel=1e-3)
    assert backward == pytest.approx(BATCH * (expected.backward + checkpointing * expected.recomputed), rel=1e-3)


def test_without_adapters_the_backward_pass_is_cheaper():
    plain, adapted = (count_flops(network(KLEIN_9B, 768, rank), 4096, 512) for rank in (0, 256))
    assert plain.forward < adapted.forward
    assert plain.backward < adapted.backward
    assert 0.98 < plain.backward / plain.forward < 1.2  # activation gradients; attention's is twice its forward pass


def kept_bytes(model: AdaptedModel) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(model)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("lora", [0, RANK])
def test_blocks_keep_as_many_values_as_estimated(lora):
    def of(double: int, single: int) -> int:
        return kept_bytes(
            make_model(PixelFlux2, {**TINY, "num_layers": double, "num_single_layers": single}, lora=lora)
        )

    bytes_a_value = 4 * BATCH * (IMAGE_TOKENS + TEXT_TOKENS)
    expected = values_kept(TINY, bool(lora), dropout=False)
    assert (of(2, 1) - of(1, 1)) / bytes_a_value == pytest.approx(expected.double, rel=0.03)
    assert (of(1, 2) - of(1, 1)) / bytes_a_value == pytest.approx(expected.single, rel=0.03)


def test_a_head_keeps_as_many_values_as_estimated():
    heads = []
    for blocks in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(HEAD, "blocks", blocks)
            model = make_model(DdtFlux2, TINY)
        heads.append(kept_bytes(model))
    expected = values_kept(TINY, True, False, head_width=192).head
    # CPUs have no fused RMSNorm: with trained weights they keep queries and keys once more
    assert (heads[1] - heads[0]) / (4 * BATCH * IMAGE_TOKENS) == pytest.approx(expected + 2 * 192, rel=0.03)

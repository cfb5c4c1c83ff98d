import torch
import yaml

from asymflow.adapters import SamplingDefaults
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.core.config import validate
from pipelines.train.finetune.card import model_card, without_header
from pipelines.train.finetune.config import FinetuneSettings

DEFAULTS = SamplingDefaults(1024, 768, 24, 3.5, 17.0)


def settings(**changes):
    places = {"curated": "c", "encoded": "e", "basis": "b", "base": "/models/FLUX.2-klein-base-9B"}
    return validate(FinetuneSettings, {**places, **changes})


def subspace():
    A = torch.linalg.qr(torch.randn(768, 128))[0]
    return Subspace(A, 2.43, "channel_first", RELEASED, {})


def test_a_card_has_provenance_and_usage():
    card = model_card(settings(), subspace(), DEFAULTS)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "FLUX.2-klein-base-9B", "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "tags": ["asymflow", "lora"],
    }  # fmt: skip
    assert without_header(card) == text.lstrip()
    assert text.lstrip().startswith("# AsymFlow adapter for FLUX.2-klein")
    for part in (
        "| trained values | LoRA of rank 256, first and last layers |",
        "| loss | variance-reduced by patch, kappa 0.3, LPIPS (vgg) times 0.2 |",
        "| basis | rank 128 of 768, scale 2.43, patches channel_first |",
        "| color space | Oklab, mean 0.56, 0, 0.01, std 0.16 |",
        "| sampling | 768 x 1024, 24 steps, guidance 3.5 (orthogonal part 1), shift 17 |",
        "whose license also covers this adapter",
        "AsymFlux2KleinPipeline.from_pretrained(",
    ):
        assert part in text
    assert "/models" not in text  # a path of one machine


def test_baselines_have_cards_of_their_own():
    plain = {"loss": {"kind": "flow_matching"}}
    latent = model_card(settings(model="latent", **plain), None, DEFAULTS)
    assert "| loss | flow matching |" in latent
    assert "basis" not in latent
    assert "from_pretrained" not in latent
    head = model_card(settings(model="ddt", lora=None, **plain), subspace(), DEFAULTS)
    assert "| trained values | first and last layers |" in head
    assert "from_pretrained" not in head
    outer = model_card(settings(model="l2p", lora=None, **plain), subspace(), DEFAULTS)
    assert "| trained values | first layer, 3 blocks at each end, detailer |" in outer
    assert "2605.12013" in outer

"""The subspace that is trained in, and what is looked for before anything starts."""

import pytest
import torch

from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, random_basis
from pipelines.core.config import ConfigError, validate
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.model import make_subspace
from pipelines.train.pretrain.step import check


def test_an_encoder_that_is_not_there_is_named_before_anything_starts(tmp_path):
    settings = validate(PretrainSettings, {"curated": "c", "basis": "b", "repa": {"encoder": str(tmp_path)}})
    with pytest.raises(ConfigError, match="repa.encoder: there is no DINOv2 in .*facebook/dinov2-base"):
        check(settings)


def test_subspaces_of_the_family_are_parts_of_one_basis():
    pca = Subspace(random_basis(768, 32).float(), 1.0, "channel_last", SrgbSpace(), {"pictures": 7})

    def made(**subspace):
        return make_subspace(validate(PretrainSettings, {"curated": "c", "basis": "b", "subspace": subspace}), pca)

    assert torch.equal(made(rank=8).A, pca.A[:, :8]) and made(rank=8).provenance["pictures"] == 7
    assert made(rank=0).A.shape == (768, 0) and torch.equal(made(rank=768).A, torch.eye(768))
    random = made(rank=8, kind="random", seed=3)
    assert random.A.shape == (768, 8) and torch.equal(random.A, made(rank=8, kind="random", seed=3).A)
    assert not torch.equal(random.A, made(rank=8, kind="random", seed=4).A)
    with pytest.raises(ValueError, match="subspace.rank=33: the basis has 32; see its pca_rank"):
        made(rank=33)

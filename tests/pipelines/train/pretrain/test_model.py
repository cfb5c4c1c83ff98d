"""The subspace of a training, and the checks before it starts."""

import pytest
import torch
from tiny_pretrained import write_pretrained

from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, random_basis
from pipelines.core.config import ConfigError, validate
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.model import load_pretrained, make_subspace


def test_subspaces_of_the_family_are_parts_of_one_basis():
    pca = Subspace(random_basis(768, 32).float(), 1.0, "channel_last", SrgbSpace(), {"pictures": 7})

    def made(**subspace):
        return make_subspace(validate(PretrainSettings, {"curated": "c", "basis": "b", "subspace": subspace}), pca)

    assert torch.equal(made(rank=8).A, pca.A[:, :8])
    assert made(rank=8).provenance["pictures"] == 7
    assert made(rank=0).A.shape == (768, 0)
    assert torch.equal(made(rank=768).A, torch.eye(768))
    random = made(rank=8, kind="random", seed=3)
    assert random.A.shape == (768, 8)
    assert torch.equal(random.A, made(rank=8, kind="random", seed=3).A)
    assert not torch.equal(random.A, made(rank=8, kind="random", seed=4).A)
    with pytest.raises(ValueError, match="subspace.rank=33: the basis has rank 32; see its pca_rank"):
        made(rank=33)


def test_rank_auto_is_the_recommended_rank():
    def made(recommended, **subspace):
        origin = {"energy": 0.9, **recommended}
        pca = Subspace(random_basis(768, 32).float(), 1.0, "channel_last", SrgbSpace(), origin)
        tree = {"curated": "c", "basis": "b", "subspace": {"rank": "auto", **subspace}}
        return make_subspace(validate(PretrainSettings, tree), pca), pca

    found, pca = made({"recommended_rank": 11})
    assert torch.equal(found.A, pca.A[:, :11])
    assert found.provenance["rank"] == 11
    assert found.provenance["energy"] == 0.9
    with pytest.raises(ValueError, match="subspace.rank=auto, which is 40: the basis has rank 32; see its pca_rank"):
        made({"recommended_rank": 40})
    with pytest.raises(ValueError, match="subspace.rank=auto: the basis recommends no rank; run the basis step again"):
        made({})
    with pytest.raises(ConfigError, match="basis: missing; subspace.rank=auto of a PCA needs"):
        validate(PretrainSettings, {"curated": "c", "subspace": {"rank": "auto"}})
    with pytest.raises(ConfigError, match="subspace.rank=auto: only a PCA recommends a rank; .*=random needs"):
        made({"recommended_rank": 11}, kind="random")
    with pytest.raises(ConfigError, match="subspace.rank='most': must be auto, or a whole number from 0"):
        validate(PretrainSettings, {"curated": "c", "basis": "b", "subspace": {"rank": "most"}})


@pytest.mark.parametrize(("optimizer", "zero_stage"), [("adam8bit", 0), ("adam", 2), ("adam", 0)])
def test_every_optimizer_and_stage_is_loaded(tmp_path, optimizer, zero_stage):
    sections = {"optim": {"optimizer": optimizer}, "resources": {"zero_stage": zero_stage}}
    artifact, average = write_pretrained(tmp_path, **sections)
    model = load_pretrained(artifact)
    assert all(torch.equal(p, average[name]) for name, p in model.trainable().items())

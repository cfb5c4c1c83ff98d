import pytest
import torch
from safetensors.torch import save_file

from asymflow.adapters import COMFYUI, WEIGHTS
from asymflow.content import sha256_of
from pipelines.sample.adapter_files import adapter_files, weights_sha256


def test_a_folder_is_used_in_place_and_an_empty_name_is_none(tmp_path):
    with adapter_files(str(tmp_path)) as folder:
        assert folder == tmp_path
    with adapter_files("") as folder:
        assert folder is None


def test_the_hash_is_that_of_the_weights_of_either_format(tmp_path):
    with pytest.raises(ValueError, match=WEIGHTS):
        weights_sha256(tmp_path)
    for name, value in ((COMFYUI, 1.0), (WEIGHTS, 2.0)):  # the released format takes precedence
        save_file({"a": torch.tensor([value])}, tmp_path / name)
        assert weights_sha256(tmp_path) == sha256_of(tmp_path / name)

import pytest
import torch

from asymflow.models.z_image import run


def test_tokens_fill_the_grid():
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2 x 2"):
        run(None, torch.zeros(1, 6, 64), torch.ones(1), torch.zeros(1, 1, 8), (2, 2))

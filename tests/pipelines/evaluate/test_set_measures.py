from types import SimpleNamespace

import pytest
import torch

from pipelines.core.step import StepFailed
from pipelines.evaluate.set_measures import SpectrumDistance


def spectra_of(side: int):
    """Pictures of so many pixels, as far as their spectra are known."""
    scores = SimpleNamespace(features=lambda name: [torch.rand(4, side // 2)])
    return SimpleNamespace(scores={"spectrum": scores})


def test_spectra_of_other_sizes_are_refused_in_words():
    evaluated = SimpleNamespace(real_pictures=lambda why: spectra_of(32), made=spectra_of(64))
    with pytest.raises(StepFailed, match="real pictures of 32 pixels a side and drawn ones of 64 .*sampling.height"):
        SpectrumDistance("spectrum").rows(evaluated)

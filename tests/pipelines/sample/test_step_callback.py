"""Solvers' callbacks made of the samplers' one."""

import torch

from pipelines.sample.step_callback import after_each


def test_steps_are_reported_without_an_image():
    told = []
    after_each(lambda *step: told.append(step))(3, torch.zeros(1))
    assert told == [(3, None)]
    assert after_each(None)(3, torch.zeros(1)) is None

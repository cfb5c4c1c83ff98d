import pytest
import torch

from asymflow.srgb import SrgbSpace


def test_values_stay_as_they_are_but_for_the_gamut():
    space, x = SrgbSpace(), torch.tensor([-2.0, -0.5, 1.5]).expand(3, 2, 3)
    assert space.encode(x) is x
    assert space.decode(x, clamp=False) is x
    assert torch.equal(space.decode(x), x.clamp(-1, 1))
    assert torch.equal(space.clamp_to_gamut(x), x.clamp(-1, 1))


def test_eight_bits_fill_the_range():
    ends = SrgbSpace().encode8(torch.tensor([0, 255], dtype=torch.uint8))
    torch.testing.assert_close(ends, torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="expected uint8"):
        SrgbSpace().encode8(torch.zeros(3))

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from asymflow.metrics.inception_network import resize_like_tensorflow1

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # NVIDIA's file is what it is


@pytest.mark.parametrize("sizes", [(32, 299), (299, 64), (512, 300), (1, 7)])
def test_the_resize_is_tensorflows(sizes):
    images = 255 * torch.rand(2, 3, *sizes, generator=torch.Generator().manual_seed(1))
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    assert (resize_like_tensorflow1(images) - expected).abs().max() < 1e-4


def test_the_resize_in_closed_form():
    ramp = torch.arange(4.0).view(1, 1, 1, 4).repeat(1, 1, 4, 1)
    assert resize_like_tensorflow1(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]  # no half-pixel shift
    assert resize_like_tensorflow1(ramp, 2)[0, 0, 0].tolist() == [0, 2]  # no antialiasing

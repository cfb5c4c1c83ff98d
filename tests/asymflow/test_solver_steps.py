import torch

from asymflow.schedule import sampling_sigmas
from asymflow.solver_steps import after_step, denoise, levels


def test_given_levels_come_before_steps_and_shift():
    assert torch.equal(levels(4, 3.0, None), sampling_sigmas(4, 3.0))
    given = torch.tensor([0.5, 0.0])
    assert levels(4, 3.0, given) is given


def test_the_denoised_sample_is_transformed():
    x_0, noise, sigma = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.3, dtype=torch.float64)
    x_t = torch.lerp(x_0, noise, 0.3)

    def velocity(x_t, sigma):
        assert sigma.shape == (2,)
        assert sigma.dtype == x_t.dtype
        return noise - x_0

    assert torch.allclose(denoise(velocity, x_t, sigma, None), x_0, atol=1e-6)
    assert torch.allclose(denoise(velocity, x_t, sigma, lambda x: 2 * x), 2 * x_0, atol=1e-6)


def test_a_callback_may_replace_the_sample():
    x_t, seen = torch.zeros(1), []
    assert after_step(None, 0, x_t) is x_t
    assert after_step(lambda step, x: seen.append(step), 5, x_t) is x_t
    assert seen == [5]
    assert after_step(lambda step, x: x + 1, 0, x_t).item() == 1

import pytest
import torch

from asymflow.metrics.ground_edit import COLOR_LIMIT, OBJECT_LIMIT, GroundEdit, ground_edit

PINK, WHITE, BLACK = (242, 181, 200), (255, 255, 255), (0, 0, 0)
OBJECT = torch.zeros(16, 16).bool()
OBJECT[4:12, 4:12] = True
GROUND = torch.ones(16, 16).bool()
GROUND[3:13, 3:13] = False  # a ring of neither


def image(ground, object=(40, 120, 200), edge=(7, 7, 7)):
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    for color, mask in ((edge, ~(OBJECT | GROUND)), (ground, GROUND), (object, OBJECT)):
        pixels[:, mask] = torch.tensor(color, dtype=torch.uint8)[:, None]
    return pixels


def measure(edited, color=PINK):
    return ground_edit(edited, image(WHITE), color, GROUND, OBJECT)


def test_a_perfect_edit():
    found = measure(image(PINK, edge=(200, 0, 0)))  # blended pixels do not count
    assert found == GroundEdit(0.0, 0.0)
    assert found.is_success


def test_the_source_itself_keeps_the_object_and_not_the_color():
    found = measure(image(WHITE))
    assert found.object_error == 0
    assert found.color_distance > 0.1
    assert not found.is_success


def test_black_and_white_are_one_apart():
    assert measure(image(BLACK), WHITE).color_distance == pytest.approx(1.0, abs=1e-3)


def test_the_object_error_is_the_root_mean_square_in_levels():
    found = measure(image(PINK, object=(43, 116, 200)))
    assert found.object_error == pytest.approx((25 / 3) ** 0.5)
    assert found.is_success
    other = measure(image(PINK, object=(255, 0, 0)))
    assert other.color_distance == 0
    assert other.object_error > OBJECT_LIMIT
    assert not other.is_success


def test_half_of_the_ground_in_the_old_color_is_no_success():
    edited = image(PINK)
    edited[:, :8] = image(WHITE)[:, :8]
    whole, half = measure(image(WHITE)), measure(edited)
    assert half.color_distance == pytest.approx(whole.color_distance / 2**0.5)
    assert half.object_error == 0
    assert half.color_distance > COLOR_LIMIT
    assert not half.is_success


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the images are .*float32.*expected two of"):
        measure(image(PINK).float())
    with pytest.raises(ValueError, match="the mask of the object is .* with 0 pixels"):
        ground_edit(image(PINK), image(PINK), PINK, GROUND, torch.zeros(16, 16).bool())
    with pytest.raises(ValueError, match=r"the mask of the ground is \(8, 8\)"):
        ground_edit(image(PINK), image(PINK), PINK, GROUND[:8, :8], OBJECT)

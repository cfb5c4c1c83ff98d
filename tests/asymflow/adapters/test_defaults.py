import pytest

from asymflow.adapters.defaults import KEY, SamplingDefaults

OWN = SamplingDefaults(64, 96, 16, 2.0, 3.6, "none", 0.25)


def test_metadata_give_the_defaults_back():
    assert SamplingDefaults.from_metadata(OWN.to_metadata()) == OWN
    assert SamplingDefaults.from_metadata({}) == SamplingDefaults()


def test_settings_of_newer_versions_are_ignored():
    assert SamplingDefaults.from_metadata({KEY: '{"shift": 5.0, "newer": 1}'}) == SamplingDefaults(shift=5.0)


def test_metadata_of_another_form_are_refused():
    with pytest.raises(ValueError, match="its metadata 'asymflow' is not a JSON object"):
        SamplingDefaults.from_metadata({KEY: "[1]"})


@pytest.mark.parametrize("pixels", [(64, 64), (1024, 1024)])
def test_the_shift_is_constant_up_to_a_megapixel(pixels):
    assert OWN.shift_at(*pixels) == pytest.approx(3.6)


def test_the_shift_doubles_at_four_megapixels():
    assert OWN.shift_at(2048, 2048) == pytest.approx(7.2) == OWN.shift_at(4096, 4096)


@pytest.mark.parametrize("name", ["height", "width", "num_inference_steps", "guidance_scale", "shift"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_value_that_cannot_be_sampled_with_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be above 0"):
        SamplingDefaults(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_an_orthogonal_part_outside_of_0_to_1_is_refused(value):
    with pytest.raises(ValueError, match=f"orthogonal_guidance is {value}"):
        SamplingDefaults(orthogonal_guidance=value)


def test_an_unknown_padding_is_refused_with_those_allowed():
    with pytest.raises(ValueError, match="text_padding is 'left'; allowed: max_length, none"):
        SamplingDefaults(text_padding="left")

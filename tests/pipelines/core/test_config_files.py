"""Configuration files that say their step and start from each other."""

from typing import ClassVar

import pytest

from pipelines.core.config import ConfigError, Settings, load_config
from pipelines.core.config_files import read_config_file


class Optim(Settings):
    lr: float = 0.1
    betas: list[float] = [0.9, 0.99]
    clip: float | None = 1.0


class Example(Settings):
    step: ClassVar[str] = "example"
    source: str = ""
    optim: Optim | None = Optim()


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def load(path, *overrides):
    return load_config(Example, path, list(overrides))


def refused(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(path, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_variant_is_the_lines_that_differ(write):
    write("base.yaml", "step: example\nsource: data\noptim: {lr: 0.5, betas: [0.8, 0.9, 1.0], clip: 2.0}")
    write("middle.yaml", "extends: base.yaml\noptim: {clip: null}")
    variant = write("other/variant.yaml", "step: example\nextends: ../middle.yaml\noptim: {betas: [0.7]}")
    settings = load(variant, "source=mine")
    assert settings == Example(source="mine", optim=Optim(lr=0.5, betas=[0.7], clip=None))


def test_null_and_mapping_replace_each_other(write):
    write("without.yaml", "optim: null")
    assert load(write("back.yaml", "extends: without.yaml\noptim: {lr: 3}")).optim.lr == 3
    write("with.yaml", "optim: {lr: 3}")
    assert load(write("gone.yaml", "extends: with.yaml\noptim: null")).optim is None


def test_a_file_of_another_step_is_refused(write):
    other = write("other.yaml", "step: basis\nsource: data")
    assert refused(other) == f"{other} is a configuration of step 'basis', not of 'example'; use jobs/basis.py"
    variant = write("a.yaml", "step: example\nextends: other.yaml")
    assert f"{other} is a configuration of step 'basis'" in refused(variant)


def test_the_step_is_not_a_setting(write):
    assert load(write("a.yaml", "source: data")) == load(write("b.yaml", "step: example\nsource: data"))
    assert refused(write("a.yaml", "source: data"), "step=example").startswith("step='example': unknown key")
    assert read_config_file(write("b.yaml", "step: 3")) == {"step": 3}  # of settings that are no step's


def test_circles_are_refused(write):
    a, b = write("a.yaml", "extends: b.yaml"), write("b.yaml", "extends: a.yaml")
    assert refused(a) == f"{a} extends {b} extends {a}: a circle; remove one `extends`"
    alone = write("alone.yaml", "extends: ./alone.yaml")
    assert "a circle" in refused(alone)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("extends: absent.yaml", "absent.yaml', which "),
        ("extends: [a, b]", "extends=['a', 'b']: must be the path of a file"),
        ("extends: ''", "extends='': must be the path of a file"),
        ("extends: list.yaml", "list.yaml must hold settings (key: value), but it holds a list"),
        ("extends: broken.yaml", "broken.yaml is not YAML"),
    ],
)
def test_what_cannot_be_extended(write, text, named):
    write("list.yaml", "- a")
    write("broken.yaml", "a: [")
    assert named in refused(write("a.yaml", text))


def test_a_wrong_setting_of_the_extended_file_is_named(write):
    write("base.yaml", "optim: {rate: 1}")
    assert refused(write("a.yaml", "extends: base.yaml")).startswith("optim.rate=1: unknown key")

import pytest

from pipelines.core.config import ConfigError, load_config, validate
from pipelines.sample.config import SampleSettings


def settings(**changes):
    return validate(SampleSettings, {"base": "b", "adapter": "a", "prompts": "a red fox", **changes})


def test_prompts_are_one_many_or_a_file(tmp_path):
    assert settings().prompts == ["a red fox"]
    assert settings(prompts=["one", "two"]).prompts == ["one", "two"]
    file = tmp_path / "prompts.txt"
    file.write_text("ein Fuchs\n\n  über dem Schnee, im Licht  \n", "utf-8")
    read = settings(prompts=[], prompt_file=str(file))
    assert read.prompts == ["ein Fuchs", "über dem Schnee, im Licht"]
    # the file that they were read from does not change the identity
    assert read == settings(prompts=["ein Fuchs", "über dem Schnee, im Licht"])


def test_prompts_on_the_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("base: b\nadapter: a\n")
    assert load_config(SampleSettings, str(config), ["prompts=a red fox, at night"]).prompts == ["a red fox, at night"]
    assert load_config(SampleSettings, str(config), ['prompts=["one, two", three]']).prompts == ["one, two", "three"]


def test_prompts_are_read_by_the_format_of_their_file(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text('id,text\n1,"a fox, red"\n')
    read = settings(prompts=[], prompt_file=str(file), prompt_column="text")
    assert read == settings(prompts=["a fox, red"])
    with pytest.raises(ConfigError, match="prompt_file=.*no column prompt; its first line has id, text"):
        settings(prompts=[], prompt_file=str(file))


def test_a_prompt_on_the_command_line_is_not_parsed(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("base: b\nadapter: a\n")
    for text in ("a fox # red", "12:30", "yes", "#1 dad mug", "a: b"):
        assert load_config(SampleSettings, str(config), [f"prompts={text}"]).prompts == [text]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": []}, "prompts: missing; give prompts='a red fox'"),
        ({"prompts": ["a", " "]}, "prompts=.*must not be empty"),
        ({"prompt_file": "absent.txt", "prompts": []}, "prompt_file='absent.txt': absent.txt: no such file"),
        ({"prompt_file": "absent.txt"}, "prompts and prompt_file are both given"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: a seed is given twice"),
        ({"guidance_interval": [0.9, 0.2]}, "guidance_interval=.*the lower one first"),
        ({"guidance": 0.5}, "guidance=0.5"),
        ({"solver": "ddim"}, "solver='ddim'"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_settings_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        settings(**changes)


def test_pairs_go_prompt_by_prompt():
    assert list(settings(prompts=["a", "b"], seeds=[7, 3]).pairs()) == [(0, 7), (0, 3), (1, 7), (1, 3)]

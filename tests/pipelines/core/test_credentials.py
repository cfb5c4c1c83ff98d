import pytest

from pipelines.core.config import ConfigError, RunSettings, validate
from pipelines.core.credentials import has_secret, hide_secrets
from pipelines.evaluate.config import EvaluateSettings
from pipelines.sample.config import SampleSettings


@pytest.mark.parametrize(
    "uri",
    [
        "http://server:5000", "postgresql://me@host/db?sslmode=require&sslkey=/a", "s3://bucket/a@b/key",
        "sqlite:////a/b.db", "/data/x?token=a", "an essay on http and tokens", "s3://bucket/x?versionId=3",
        "postgresql://me@host/db?passfile=/home/me/.pgpass", "hf://datasets/owner/name@main/data",
    ],
)  # fmt: skip
def test_addresses_without_a_secret(uri):
    assert not has_secret(uri)
    assert hide_secrets(f"cannot reach {uri}.") == f"cannot reach {uri}."


@pytest.mark.parametrize(
    "uri",
    ["http://s3cr@host", "s3://s3cr@bucket/x", "hf://s3cr@datasets/a/b", "https://host/?token=s3cr", "http://a:s3cr@["],
)
def test_a_secret_is_in_no_setting_and_no_message(uri):
    assert has_secret(uri)
    assert "s3cr" not in hide_secrets(f"no route to {uri!r} (3 tries)")
    for settings, tree in (
        (RunSettings, {"tracking_uri": uri}),
        (RunSettings, {"ray_address": uri}),
        (SampleSettings, {"base": "x", "adapter": uri, "prompts": "a fox"}),
        (EvaluateSettings, {"prompts": {"file": uri}}),
    ):
        with pytest.raises(ConfigError, match="holds a password or a token") as error:
            validate(settings, tree)
        assert "s3cr" not in str(error.value)


def test_the_home_folder_in_any_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    tree = {
        "base": "~/klein", "adapter": "~/adapter", "prompts": "~/not a path", "negative_prompt": "~/nor this",
        "safety": {"classifier": "~/nsfw"}, "run": {"storage": "~/runs", "tracking_uri": "http://a"},
    }  # fmt: skip
    settings = validate(SampleSettings, tree)
    assert settings.base == "/home/me/klein"
    assert settings.adapter == "/home/me/adapter"
    assert settings.safety.classifier == "/home/me/nsfw"
    assert settings.run.storage == "/home/me/runs"
    assert settings.prompts == ["~/not a path"]
    assert settings.negative_prompt == "~/nor this"

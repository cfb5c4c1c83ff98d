"""Settings of the export alone; the files that it writes are tested in test_export.py."""

import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.train.finetune.export_config import ExportSettings

CONVERSION = {"adapter": "adapter", "out": "out"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "give either finetune .* or adapter"),
        ({"finetune": "toy.yaml", **CONVERSION}, "give either finetune .* or adapter"),
        ({**CONVERSION, "checkpoint": 0}, "checkpoint: belongs to finetune; an adapter has none"),
        ({**CONVERSION, "changes": {"rank": 8}}, "changes: belongs to finetune"),
        ({"adapter": "adapter"}, "out: missing, the folder or s3:// URI"),
        ({**CONVERSION, "format": "merged"}, "base: missing, the folder of the latent model"),
        ({**CONVERSION, "format": "gguf"}, "base: missing, the folder of the latent model"),
        ({**CONVERSION, "gguf": "q4_k"}, "gguf='q4_k'"),
    ],
)
def test_settings_that_do_not_go_together_are_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(ExportSettings, tree)


def test_an_adapter_has_no_settings_of_a_finetune():
    assert validate(ExportSettings, CONVERSION).load_finetune() is None


def test_changes_replace_settings_of_the_file(tmp_path):
    file = tmp_path / "finetune.yaml"
    file.write_text("step: finetune\nbase: base\nencoded: old\ncurated: curated\nbasis: basis\n")
    settings = validate(ExportSettings, {"finetune": str(file), "changes": {"encoded": "new"}}).load_finetune()
    assert (settings.encoded, settings.basis) == ("new", "basis")


def test_a_mistake_in_changes_names_the_file(tmp_path):
    file = tmp_path / "finetune.yaml"
    file.write_text("step: finetune\nbase: base\nencoded: encoded\ncurated: curated\nbasis: basis\n")
    settings = validate(ExportSettings, {"finetune": str(file), "changes": {"optim": {"batch": 0}}})
    with pytest.raises(ConfigError, match="finetune='.*finetune.yaml' with changes: optim.batch=0"):
        settings.load_finetune()

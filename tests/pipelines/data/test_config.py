from pathlib import Path

import pytest

from asymflow.models.captioner import MIN_PIXELS
from pipelines.core.config import ConfigError, load_config
from pipelines.data.config import MIN_CAPTION_PIXELS, CaptionSettings

CONFIG = Path(__file__).parents[3] / "jobs/configs/caption/laion.yaml"


def test_bad_settings_are_refused(tmp_path):
    config = tmp_path / "caption.yaml"
    config.write_text("curated: a\nmodel: b\n")
    for override, message in (
        ("backend=llama", "backend='llama': input should be 'transformers' or 'vllm'"),
        ("max_pixels=100", "max_pixels=100: input should be greater than or equal to 3136"),
        ("prompt=", "prompt='': string should have at least 1 character"),
        ("resources.batch_pixels=0", "resources.batch_pixels=0: input should be greater than or equal to 1"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}$"):
            load_config(CaptionSettings, str(config), [override])
    assert load_config(CaptionSettings, str(CONFIG), []).resources.batch_pixels == 32 * 1280 * 28 * 28


def test_the_least_pixels_of_the_settings_are_the_captioners():
    assert MIN_CAPTION_PIXELS == MIN_PIXELS

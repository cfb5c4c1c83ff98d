import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from pipelines.evaluate.generate import Generator
from pipelines.evaluate.subject import EvaluatedModel
from pipelines.sample.parameters import SamplingParameters

PARAMETERS = SamplingParameters(16, 16, 1, 1.0, 1.0)


def test_an_image_of_nan_is_an_error_that_names_it(tmp_path):
    generator = Generator(EvaluatedModel("", "", "", None), PARAMETERS, "cpu")
    generator.loaded = ("trained", lambda prompts, seeds, parameters: torch.full((1, 3, 16, 16), float("nan")))
    with pytest.raises(ValueError, match="image of 'a cat', seed 3, has NaN"):
        generator(json.dumps(["trained", str(tmp_path), [[3, "a cat", "000003-x"]]]))
    assert not list(tmp_path.glob("*.png"))


class Levels:
    """A subject whose images have the level of their model and seed, and which notes what it loads."""

    def __init__(self):
        self.loaded = []

    def sampler(self, model, device):
        self.loaded.append((model, device))
        low = {"latent": -1.0, "trained": 0.0}[model]
        return lambda prompts, seeds, parameters: torch.stack([torch.full((3, 16, 16), low + 0.1 * s) for s in seeds])


def test_images_are_written_by_their_keys_and_a_model_is_loaded_once(tmp_path):
    subject = Levels()
    generator = Generator(subject, PARAMETERS, "cpu")
    for model, keys in (("latent", ["a", "b"]), ("latent", ["c"]), ("trained", ["d"])):
        generator(json.dumps([model, str(tmp_path), [[i, f"prompt {key}", key] for i, key in enumerate(keys)]]))
    assert subject.loaded == [("latent", "cpu"), ("trained", "cpu")]
    levels = {file.stem: Image.open(file).getpixel((0, 0))[0] for file in tmp_path.glob("*.png")}
    assert levels == {"a": 0, "b": 13, "c": 0, "d": 128}


def test_the_driver_samples_and_reports_without_loading_what_only_workers_need():
    """diffusers and peft took more than four seconds of processor time of each evaluation, before its first image."""
    driver = "step generate subject registry show score".split()
    imports = "; ".join(f"import pipelines.evaluate.{name}" for name in driver)
    found = f"import sys; {imports}; print(sorted({{'diffusers', 'peft', 'transformers'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

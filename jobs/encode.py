"""Encode the curated images and captions to latent tokens and text embeddings, so that training loads no encoder."""

from pipelines.core.cli import main
from pipelines.data.config import EncodeSettings


def load():
    from pipelines.data.encode import STEP

    return STEP


if __name__ == "__main__":
    main(EncodeSettings, load, __doc__)

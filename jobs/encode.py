"""Latent tokens and text embeddings of the curated pictures, so that training loads no encoder."""

from pipelines.core.cli import main
from pipelines.data.encode import STEP

if __name__ == "__main__":
    main(STEP, __doc__)

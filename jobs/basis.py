"""Compute the PCA and Procrustes bases, and the scale, in one pass over the curated images."""

from pipelines.core.cli import main
from pipelines.data.basis.config import BasisSettings


def load():
    from pipelines.data.basis.step import STEP

    return STEP


if __name__ == "__main__":
    main(BasisSettings, load, __doc__)

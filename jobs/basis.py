"""PCA and Procrustes bases with their scale, from one pass over the curated pictures."""

from pipelines.core.cli import main
from pipelines.data.basis.config import BasisSettings


def load():
    from pipelines.data.basis.step import STEP

    return STEP


if __name__ == "__main__":
    main(BasisSettings, load, __doc__)

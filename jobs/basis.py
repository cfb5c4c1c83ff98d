"""PCA and Procrustes bases with their scale, from one pass over the curated pictures."""

from pipelines.core.cli import main
from pipelines.data.basis import STEP

if __name__ == "__main__":
    main(STEP, __doc__)

"""PCA and Procrustes bases with their scale, from one pass over the curated pictures."""

from pipelines.basis import STEP
from pipelines.cli import main

if __name__ == "__main__":
    main(STEP, __doc__)

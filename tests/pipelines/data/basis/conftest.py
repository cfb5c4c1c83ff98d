import numpy as np
import pytest
from PIL import Image

from pipelines.core import artifacts, storage
from pipelines.core.config import RunSettings
from pipelines.data.basis.config import BasisSettings
from pipelines.data.basis.moments import PieceMoments, read_partial
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter, cut_into_pieces
from pipelines.data.images import encode_png


@pytest.fixture(scope="session")
def curated(tmp_path_factory):
    """A curate artifact of three train files and one held out, as that step writes them but without its Ray."""
    folder = storage.absolute(str(tmp_path_factory.mktemp("curated")))
    rng = np.random.default_rng(0)
    for name, rows in (("train/a", 150), ("train/b", 130), ("train/c", 64), ("held_out/a", 10)):

        def write(path, name=name, rows=rows):
            with RowWriter(path, SCHEMA) as writer:
                for index in range(rows):
                    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((48, 32))
                    image = np.clip(np.asarray(coarse, int) + rng.integers(-20, 21, (32, 48, 3)), 0, 255)
                    writer.add({"key": f"{name}/{index}", "image": encode_png(Image.fromarray(image.astype(np.uint8))),
                                "caption": "", "width": 48, "height": 32})  # fmt: skip

        storage.write_file(storage.join(folder, f"{name}-48x32.parquet"), write)
    return artifacts.write_manifest(folder, "curate", "123", CurateSettings(source="data"), {}, {})


@pytest.fixture
def moments_of(curated, tmp_path):
    """Call with settings: the moments of each piece of the training images, or of the first pieces."""

    def compute(folder="moments", pieces=None, **settings):
        out = str(tmp_path / folder)
        base = {"curated": curated.uri, "run": RunSettings(storage=out)}
        worker = PieceMoments(BasisSettings(**base, **settings), "", out)
        found = cut_into_pieces(curated.files("train", ".parquet"))[:pieces]
        return [read_partial(out, worker(piece.to_json())["name"]) for piece in found]

    return compute

"""Files of an adapter, wherever it is; importing this loads no models."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asymflow.adapters import COMFYUI, WEIGHTS, read_defaults
from asymflow.adapters.hub import local_folder
from asymflow.content import sha256_of
from pipelines.core import storage


@contextmanager
def adapter_files(adapter: str) -> Iterator[Path | None]:
    """Yield a local folder of the adapter at a path, S3 URI or in a repository; None for an empty name."""
    if adapter.startswith("s3://"):
        with storage.local_folder(adapter) as folder:
            yield folder
    else:
        yield local_folder(adapter) if adapter else None


def weights_sha256(adapter: Path) -> str:
    """Return the SHA-256 of the adapter's tensors."""
    read_defaults(adapter)  # raises an error that names missing files
    path = next(path for path in (adapter / WEIGHTS, adapter / COMFYUI) if path.is_file())
    return sha256_of(path)

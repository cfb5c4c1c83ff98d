"""Loading the latent model's parts from its diffusers folder, and saying clearly what is missing."""

from pathlib import Path

from pipelines.config import ConfigError


def check_base(base: str, parts: tuple[str, ...]) -> None:
    """Raise ConfigError unless `base` is a local diffusers pipeline folder with these parts."""
    folder = Path(base)
    if not folder.is_dir():
        raise ConfigError(
            f"base={base!r}: no such folder; download the pipeline there first (FLUX.2 klein Base 9B asks you to "
            "accept its non-commercial licence), or make the demo's with `python jobs/make_toy_base.py`"
        )
    for part in parts:
        if not (folder / part).is_dir():
            raise ConfigError(f"base={base!r}: it has no {part!r} folder, so it is no whole diffusers pipeline")

"""Folders, zips and data sets of one's own images, and what curate reads of them."""

import zipfile

import pyarrow as pa
from random_sources import image_of

from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.image_lists import LIST_ENDING
from pipelines.data.curate.samples import Columns, SampleKeys
from pipelines.data.curate.shard_reader import read_shard
from pipelines.data.curate.source_files import path_in_source
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.step import list_items

IMAGE = image_of(1, "PNG")


def write(folder, files):
    """Write files {path: bytes} below a folder. Returns the folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def zip_of(files, path, **options):
    """Write a zip of files {path: bytes}."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def read(source, out, columns=None):
    """Return {key: (caption, problem)} of all samples of a source."""
    settings = CurateSettings(source=str(source), columns=columns or Columns())
    items = list_items(settings, find_source(str(source), settings.columns), str(out))
    found = {}
    for place in items.values():
        key_of = SampleKeys("" if place.endswith(LIST_ENDING) else path_in_source(str(source), place))
        for sample in read_shard(place, settings.columns):
            found[key_of(sample.key)] = sample.caption.strip(), sample.problem
    return found


def table(*captions):
    """Return a table as Hugging Face stores images, one row per caption."""
    return pa.table({"image": [{"bytes": IMAGE, "path": "x.png"}] * len(captions), "text": list(captions)})

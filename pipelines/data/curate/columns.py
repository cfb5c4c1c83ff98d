"""Find the columns of a table, or of a metadata file, that hold the images, the captions and the keys."""

from collections.abc import Collection, Sequence

import pyarrow as pa

from pipelines.core.config import ConfigError
from pipelines.data.curate.samples import Columns

IMAGE_NAMES = ("image", "img", "file_name", "filename", "image_path", "path", "file")
CAPTION_NAMES = ("caption", "text", "prompt", "description")
_WITHOUT_DEFAULT = ("global_key", "caption_key", "label")


class MissingColumn(ConfigError):
    """Raised if a table lacks a column; `reason` is the reason written to `rejected/`."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def find_columns(
    columns: Columns, where: str, names: Sequence[str], texts: Collection[str], images: Sequence[str] = ()
) -> Columns:
    """Return the settings with the names that a table has.

    A name that is given in the settings must exist, except those of reference images, which only edits have. In place
    of a default name that does not exist, the usual names are searched: a column of image bytes or a usual name for the
    image; a usual name, or else the only column of text, for the caption, unless captions are joined by a key; the row
    number for the key.

    Args:
        columns: The settings.
        where: The table, for errors.
        names: Its columns.
        texts: Those that hold text.
        images: Those that hold structs of bytes and path.

    Returns:
        The settings; the key and the caption are empty if there are none.

    Raises:
        MissingColumn: A column does not exist, or there are several candidates.
    """
    texts = [name for name in texts if name not in columns.references]
    images = [name for name in images if name not in columns.references]
    for setting in ("key", "global_key", "image", "caption", "caption_key", "label"):
        name = getattr(columns, setting)
        if name and name not in names and (setting in columns.model_fields_set or setting in _WITHOUT_DEFAULT):
            raise _missing(columns, setting, where, names)
    image = columns.image if columns.image in names else _find_image(columns, where, names, images)
    caption = columns.caption
    if caption and caption not in names and columns.caption_key:
        caption = ""  # not needed
    elif caption and caption not in names:
        caption = _find_caption(where, names, [name for name in texts if name not in (image, columns.sha256)])
    key = columns.key if columns.key in names else ""
    return columns.model_copy(update={"image": image, "caption": caption, "key": key})


def find_columns_of_schema(columns: Columns, where: str, schema: pa.Schema) -> Columns:
    """Return the settings with the names that an Arrow schema has; see `find_columns`."""
    texts = [field.name for field in schema if is_text(field.type)]
    return find_columns(columns, where, schema.names, texts, [f.name for f in schema if is_image_struct(f.type)])


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_image_struct(kind: pa.DataType) -> bool:
    """Return whether a column holds images as Hugging Face `datasets` stores them: structs of bytes and path."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _find_image(columns: Columns, where: str, names: Sequence[str], images: Sequence[str]) -> str:
    if len(images) > 1 and "image" not in images:
        shown = ", ".join(images)
        raise MissingColumn(
            f"{where}: several columns hold images, {shown}; choose one, for example columns.image={images[0]}",
            "several columns of images",
        )
    for name in (*IMAGE_NAMES, *images):
        if name in names and (not images or name in images):
            return name
    raise _missing(columns, "image", where, names)


def _find_caption(where: str, names: Sequence[str], texts: list[str]) -> str:
    for name in CAPTION_NAMES:
        if name in names:
            return name
    if len(texts) > 1:
        raise MissingColumn(
            f"{where}: several columns may hold the captions, {', '.join(texts)}; choose one, for example "
            f"columns.caption={texts[0]}",
            "several columns of text",
        )
    return texts[0] if texts else ""


def _missing(columns: Columns, setting: str, where: str, names: Sequence[str]) -> MissingColumn:
    name = getattr(columns, setting)
    return MissingColumn(
        f"columns.{setting}={name!r}: {where} has no such column; it has {', '.join(names)}; if it is not a shard, "
        "move it out of the source",
        f"shard without column {name}",
    )

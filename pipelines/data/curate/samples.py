"""What a source calls its columns."""

from pipelines.core.config import Settings


class Columns(Settings):
    """What the crawl calls things: columns of parquet shards, keys of a tar's json. The defaults are LAION's."""

    key: str = "key"
    """Of parquet shards; empty: numbered"""
    image: str = "jpg"
    """Column of encoded bytes in parquet shards; in tars a picture is known by its extension"""
    caption: str = "caption"
    """Of parquet shards, and of a tar without .txt members"""
    sha256: str = "sha256"
    aesthetic: str = "aesthetic"
    punsafe: str = "punsafe"
    pwatermark: str = "pwatermark"
    similarity: str = "similarity"
    label: str = ""
    """Number of the class, from 0, where `labels` is column"""

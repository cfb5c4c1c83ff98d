"""Cached scores: missing ones are computed by a pool of actors per scorer.

A batch's rows are a parquet file in STORAGE/scores/PICTURES/SCORER, two hashes of everything that determines them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from asymflow.metrics.protocol import Protocol, fingerprint
from pipelines.core import storage
from pipelines.core.map_items import process_items
from pipelines.evaluate.image_sets import ImageSet, in_batches, load_image
from pipelines.evaluate.prompts import Generation, Prompt
from pipelines.evaluate.scorer import Row, Scorer

PROTOCOL = "protocol.json"
_AT_ONCE = 512
"""Features per chunk, which also fixes the order of summation"""
_OPEN = 8
"""Files of features held in memory"""


class ProtocolMismatch(ValueError):
    """Cached scores were made under another protocol than is used now; the message names their folder."""


@dataclass(frozen=True)
class Scores:
    """Scores of one set of images by one scorer, in the order of `keys`."""

    folder: str
    keys: Sequence[str]

    @cached_property
    def protocol(self) -> Protocol:
        """Return the protocol that the scores were made under."""
        return json.loads(storage.read_bytes(storage.join(self.folder, PROTOCOL)))

    @cached_property
    def _files(self) -> list[str]:
        return storage.list_files(self.folder, ".parquet")

    def rows(self) -> list[Row]:
        """Return the rows without features; values other than numbers and texts are JSON."""
        found = {row["key"]: row for file in self._files for row in _plain(file)}
        return [found[key] for key in self.keys]

    def features(self, name: str) -> Iterator[Tensor]:
        """Yield (N, ...) features in chunks of some hundred images, to limit memory."""
        positions = {key: (file, i) for file in self._files for i, key in enumerate(_keys(file))}
        part = lru_cache(_OPEN)(partial(_features, name=name))
        for keys in in_batches(list(self.keys), _AT_ONCE):
            yield torch.stack([part(positions[key][0])[positions[key][1]] for key in keys])


class ScoreWorker:
    """Scores a batch: JSON [folder, [[key, URI, index of its prompt], ...]]."""

    def __init__(self, scorer: Scorer, prompts: Sequence[Prompt], folders: Sequence[str]):
        self.prompts = prompts
        self.score, protocol = scorer.load(scorer.resources.device)
        for folder in folders:
            _write_protocol(protocol, folder)

    def __call__(self, item: str) -> dict[str, Any]:
        """Score a batch, by groups of equal image size, and write its rows."""
        folder, batch = json.loads(item)
        images = [load_image(uri) for _, uri, _ in batch]
        prompts = [self.prompts[index] for _, _, index in batch]
        rows: dict[int, Row] = {}
        sizes = dict.fromkeys(image.shape for image in images)
        for size in sizes:
            same = [i for i, image in enumerate(images) if image.shape == size]
            scored = self.score(torch.stack([images[i] for i in same]), [prompts[i] for i in same])
            rows.update(zip(same, scored, strict=True))
        _write(folder, [{"key": batch[i][0], **rows[i]} for i in range(len(batch))])
        return {}


def score(
    sets: Mapping[str, ImageSet], generations: Sequence[Generation], name: str, scorer: Scorer, root: str
) -> dict[str, Scores]:
    """Return the scores of each set by its name; images that belong to no generation have an empty prompt.

    Args:
        sets: image sets by name.
        generations: generations of the suite.
        name: name of the scorer.
        scorer: its settings.
        root: the storage.

    Raises:
        ItemsFailed: images could not be scored, or cached scores have another protocol (ProtocolMismatch).
    """
    identity = fingerprint({"scorer": name, **scorer.identity()})
    folders = {label: storage.join(root, "scores", found.id, f"{name}-{identity}") for label, found in sets.items()}
    prompts = [Prompt("", ""), *{generation.prompt.digest: generation.prompt for generation in generations}.values()]
    index_of = {prompt.digest: index for index, prompt in enumerate(prompts)}
    indices = {generation.key: index_of[generation.prompt.digest] for generation in generations}
    items = {}
    for label, found in sets.items():
        cached = {key for file in storage.list_files(folders[label], ".parquet") for key in _keys(file)}
        missing = [[key, uri, indices.get(key, 0)] for key, uri in found.files.items() if key not in cached]
        for batch in in_batches(missing, scorer.resources.batch):
            items[f"{label} {batch[0][0]}"] = json.dumps([folders[label], batch])
    make_worker = partial(ScoreWorker, scorer, prompts, list(folders.values()))
    process_items(items, make_worker, scorer.resources, f"score {name}", unit="batch")
    return {label: Scores(folders[label], list(found.files)) for label, found in sets.items()}


def _write_protocol(protocol: Protocol, folder: str) -> None:
    """Write the protocol beside the scores, once. Raises ProtocolMismatch if another one is there."""
    uri = storage.join(folder, PROTOCOL)
    if not storage.exists(uri):
        storage.write_bytes(uri, json.dumps(protocol, indent=1).encode())
    elif (known := json.loads(storage.read_bytes(uri))) != json.loads(json.dumps(protocol)):
        raise ProtocolMismatch(f"the scores in {folder} have the protocol {known}, not {protocol}: move it away")


def _write(folder: str, rows: Sequence[Row]) -> None:
    """Write a file per batch, named by its keys: a repeated batch replaces its file."""
    keys = [row["key"] for row in rows]
    columns: dict[str, Any] = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        if isinstance(values[0], Tensor):
            columns[column] = pa.FixedShapeTensorArray.from_numpy_ndarray(torch.stack(values).contiguous().numpy())
        elif isinstance(values[0], list | dict):
            columns[column] = [json.dumps(value) for value in values]
        else:
            columns[column] = values
    name = f"{keys[0]}-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:10]}.parquet"
    storage.write_file(storage.join(folder, name), lambda local: pq.write_table(pa.table(columns), local))


def _read(file: str, columns: list[str] | None = None) -> pa.Table:
    with storage.open_file(file) as source:
        return pq.read_table(source, columns=columns)


def _keys(file: str) -> list[str]:
    return _read(file, ["key"])["key"].to_pylist()


def _plain(file: str) -> list[Row]:
    with storage.open_file(file) as source:
        schema = pq.read_schema(source)
    names = [field.name for field in schema if not isinstance(field.type, pa.FixedShapeTensorType)]
    return _read(file, names).to_pylist()


def _features(file: str, name: str) -> Tensor:
    array = _read(file, [name])[name].combine_chunks()
    return torch.from_numpy(array.to_numpy_ndarray().copy())

"""Cached scores in files, without Ray."""

import json

import pytest
import torch
from PIL import Image

from pipelines.evaluate import score as module
from pipelines.evaluate.image_sets import ImageSet
from pipelines.evaluate.prompts import Prompt, list_generations
from pipelines.evaluate.score import ProtocolMismatch, Scores, ScoreWorker, score
from pipelines.evaluate.scorers import Scorer


class Brightness(Scorer):
    """A scorer: mean, its prompt, and the corner pixel as a feature."""

    offset: float = 0.0

    def load(self, device):
        def look(images, prompts):
            CALLS.append(len(images))
            means = images.double().mean((1, 2, 3)) + self.offset
            return [
                {"score": float(m), "asked": p.text, "seen": {"size": list(i.shape)}, "corner": i[:, 0, 0].double() / 3}
                for m, p, i in zip(means, prompts, images, strict=True)
            ]

        return look, {"metric": "brightness", "offset": self.offset}


CALLS = []


@pytest.fixture
def pictures(tmp_path):
    """Return seven images, two of them of another size, and their generations."""
    generations = list_generations([Prompt(str(i), f"prompt {i}") for i in range(7)], 1)
    files = {}
    for i, generation in enumerate(generations):
        size = (6, 4) if i in (2, 5) else (4, 4)
        files[generation.key] = str(tmp_path / f"{i}.png")
        Image.new("RGB", size, (i, 10 * i, 100 + i)).save(files[generation.key])
    return generations, ImageSet("set", files, {})


@pytest.fixture
def here(monkeypatch):
    """Run items in this process."""

    def do(items, make_worker, resources, label, unit):
        worker = make_worker() if items else None
        for item in items.values():
            worker(item)

    monkeypatch.setattr(module, "process_items", do)
    CALLS.clear()


def test_rows_and_features_are_in_the_order_of_the_images_however_they_were_made(pictures, here, tmp_path):
    generations, found = pictures
    whole = score({"a": found}, generations, "brightness", Brightness(resources={"batch": 7}), str(tmp_path / "whole"))[
        "a"
    ]
    parts, part = str(tmp_path / "parts"), Brightness(resources={"batch": 2})
    some = dict(list(found.files.items())[3:6])
    score({"a": ImageSet("set", some, {})}, generations, "brightness", part, parts)
    assert CALLS == [5, 2, 2, 1]  # images of one size are scored together
    CALLS.clear()
    rest = score({"a": found}, generations, "brightness", part, parts)["a"]
    assert sum(CALLS) == 4  # the others are cached
    assert rest.rows() == whole.rows()
    assert rest.protocol == {"metric": "brightness", "offset": 0.0}
    assert [row["asked"] for row in rest.rows()] == [f"prompt {i}" for i in range(7)]
    assert json.loads(rest.rows()[2]["seen"]) == {"size": [3, 4, 6]}
    (a,), (b,) = list(rest.features("corner")), list(whole.features("corner"))
    assert torch.equal(a, b)
    assert a.dtype == torch.float64
    assert torch.equal(a[:, 1], torch.arange(7.0, dtype=torch.float64) * 10 / 3)


def test_features_come_in_parts_of_one_size_whatever_the_files(pictures, here, tmp_path, monkeypatch):
    generations, found = pictures
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    scores = score({"a": found}, generations, "brightness", Brightness(resources={"batch": 2}), str(tmp_path))["a"]
    assert [len(part) for part in scores.features("corner")] == [3, 3, 1]


def test_a_repeated_batch_replaces_its_file(pictures, tmp_path):
    generations, found = pictures
    worker = ScoreWorker(Brightness(), [Prompt("", "")], [str(tmp_path / "scores")])
    item = json.dumps([str(tmp_path / "scores"), [[key, uri, 0] for key, uri in list(found.files.items())[:3]]])
    worker(item)
    worker(item)
    assert len(list((tmp_path / "scores").glob("*.parquet"))) == 1
    scores = Scores(str(tmp_path / "scores"), list(found.files)[:3])
    assert len(scores.rows()) == 3


def test_other_settings_are_other_scores_and_another_protocol_is_never_mixed_in(pictures, here, tmp_path):
    generations, found = pictures
    plain = score({"a": found}, generations, "brightness", Brightness(), str(tmp_path))["a"]
    moved = score({"a": found}, generations, "brightness", Brightness(offset=1.0), str(tmp_path))["a"]
    assert plain.folder != moved.folder
    assert moved.rows()[0]["score"] == plain.rows()[0]["score"] + 1
    same = score({"a": found}, generations, "brightness", Brightness(resources={"batch": 3}), str(tmp_path))["a"]
    assert same.folder == plain.folder  # hardware does not change the identity
    with pytest.raises(ProtocolMismatch, match="have the protocol .*'offset': 0.0.* not .*'offset': 2.0"):
        ScoreWorker(Brightness(offset=2.0), [], [plain.folder])

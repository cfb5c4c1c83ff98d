"""Batches from small files as the curate step writes them; common behavior is tested with the finetune's batches."""

import random
from itertools import islice

import pytest
import torch
from PIL import Image

from pipelines.core.config import validate
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter
from pipelines.data.images import encode_png
from pipelines.train.pretrain.batches import BatchLoader
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.row_groups import list_row_groups
from pipelines.train.sample_order import SampleOrder
from pipelines.train.task import Tokens

ROWS, BATCH, SIDE = 24, 6, 32


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "32x32-00000.parquet"
    with RowWriter(file, SCHEMA, 4) as writer:
        for i in range(ROWS):
            picture = Image.frombytes("RGB", (SIDE, SIDE), random.Random(i).randbytes(3 * SIDE * SIDE))
            row = {"key": str(i), "image": encode_png(picture), "width": SIDE, "height": SIDE, "label": i % 5}
            writer.add(row)
    return [str(file)]


def loader(files, rank=0, workers=1, **changes):
    tree = {"curated": "c", "subspace": {"rank": 0}, "classes": 5, "optim": {"batch": BATCH}, **changes}
    settings = validate(PretrainSettings, tree)
    return BatchLoader(settings, SampleOrder(list_row_groups(files, [], [""]), 0, 2), rank, workers)


def batches(found, count=ROWS // BATCH, first=0, micro_batch=BATCH):
    return [batch for step in islice(found.from_step(first, micro_batch), count) for batch in step]


def test_an_epoch_has_every_image_once_with_its_label(files):
    seen = batches(loader(files, loss={"class_dropout": 0.0}))
    labels = {key: int(label) for batch in seen for key, label in zip(batch.keys, batch.labels, strict=True)}
    assert labels == {str(i): i % 5 for i in range(ROWS)}
    assert seen[0].tokens == Tokens(all=BATCH * 4, image=4)
    assert seen[0].images.shape == (BATCH, 3, SIDE, SIDE)


def test_labels_are_dropped_at_their_rate(files):
    seen = torch.cat([b.labels for b in batches(loader(files, loss={"class_dropout": 0.3}), count=60)])
    assert 0.2 < float((seen == 5).double().mean()) < 0.4
    assert (torch.cat([b.labels for b in batches(loader(files, loss={"class_dropout": 1.0}))]) == 5).all()


def test_half_of_the_images_are_mirrored_by_the_sample_alone(files):
    plain = {k: x for b in batches(loader(files, flip=False)) for k, x in zip(b.keys, b.images, strict=True)}
    turned = 0
    for batch in batches(loader(files), count=40):
        for key, image in zip(batch.keys, batch.images, strict=True):
            assert torch.equal(image, plain[key]) or torch.equal(image, plain[key].flip(-1))
            turned += torch.equal(image, plain[key].flip(-1))
    assert 0.4 < turned / 240 < 0.6


@pytest.mark.parametrize(("workers", "micro_batch"), [(2, 3), (3, 1)])
def test_a_sample_is_the_same_on_any_number_of_workers_and_from_any_step(files, workers, micro_batch):
    names = ("images", "noise", "sigma", "labels", "key_sums")

    def samples(found):
        return {k: [getattr(b, n)[i] for n in names] for b in found for i, k in enumerate(b.keys) if b.weight[i]}

    whole = samples(batches(loader(files), count=1, first=2))
    parts = (batches(loader(files, rank, workers), 1, 2, micro_batch) for rank in range(workers))
    split = samples([batch for part in parts for batch in part])
    assert whole.keys() == split.keys()
    assert all(torch.equal(a, b) for key in whole for a, b in zip(whole[key], split[key], strict=True))


def test_noise_levels_have_the_papers_law(files):
    logits = torch.cat([torch.logit(b.sigma.double()) for b in batches(loader(files), count=100)])
    assert float(logits.mean()) == pytest.approx(0.8, abs=0.1)
    assert float(logits.std()) == pytest.approx(0.8, abs=0.1)


def test_a_label_beyond_the_classes_is_an_error_that_names_the_setting(files):
    with pytest.raises(ValueError, match="label 4 is out of range for classes=3; see `classes`"):
        batches(loader(files, classes=3))

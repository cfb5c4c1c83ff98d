"""Every image of a source ends in exactly one place: 2,600 random sources, through both passes, without Ray."""

import json
import shutil
from collections import Counter

import pytest
from own_sources import OwnMaker
from random_sources import TORN, ClassMaker, SourceMaker, item_of, rows_of

from pipelines.core.config import ConfigError
from pipelines.data.curate.compact import FileWriter, plan_files
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.shard import ShardCurator
from pipelines.data.curate.sources import find_source, list_classes
from pipelines.data.curate.step import check, list_items

DAMAGE = {
    "tar cut off", "false size in tar", "damaged header in tar", "no readable shard", "truncated or corrupt",
    "not an image", "JSON cannot be read", "caption is not UTF-8", "no image of its key", "empty caption", TORN,
    "zip cannot be read",
    "damaged file in zip", "overlapping files in zip", "compression of zip is not read", "encrypted file in zip",
    "link or special file in zip", "unsafe path in zip", "damaged shard",
    "metadata beside folder cannot be read",
}  # fmt: skip
OPEN = {name: None for name in ("min_aesthetic", "max_punsafe", "max_pwatermark", "min_similarity")}


def curate(source, out, by_class):
    """Curate a source: ([(key, sha256)] of the kept, [(key, reason)] of the rejected)."""
    settings = CurateSettings(
        source=str(source), labels="folder" if by_class else "", buckets=[(16, 16)], near_duplicate_bits=None,
        filters=Filters(**OPEN, min_side=1, captions=not by_class), held_out_every=2, rows_per_file=3,
    )  # fmt: skip
    check(settings)
    if by_class:
        places = list_classes(str(source))
    else:
        places = list_items(settings, find_source(str(source), settings.columns), str(out / ".staged/lists"))
    curator = ShardCurator(settings, str(out))
    for label, (name, place) in enumerate(places.items()):
        curator(item_of(name, place, label if by_class else None))
    plan = plan_files(str(out), list(places), None, 3)
    for name, segments in plan["files"].items():
        FileWriter(str(out))(json.dumps([name, segments]))
    kept = [row for split in ("train", "held_out") for row in rows_of(out / split, ["key", "sha256"])]
    rejected = rows_of(out / "rejected", ["key", "reason"])
    return [(r["key"], r["sha256"]) for r in kept], [(r["key"], r["reason"]) for r in rejected]


def check_damaged(account, found, reasons, where):
    """Images that damage has not touched are all there, but for those whose sample lost something else, which have a
    row of their own; and no damage makes more than two rows that nothing was put in for."""
    whole = set(account.kept) - account.touched
    blamed = sum(reasons[reason] for reason in DAMAGE)
    assert set(reasons) <= set(account.rejected) | DAMAGE, where
    assert len(whole - set(found)) <= blamed, where
    assert len(set(found) - set(account.kept)) <= account.damages, where  # a changed pixel is another image
    rows = sum(found.values()) + sum(reasons.values())
    assert rows >= sum(account.kept.values()) - len(account.touched), where
    assert rows <= sum(account.kept.values()) + sum(account.rejected.values()) + 2 * account.damages, where


@pytest.mark.parametrize(("maker", "count"), [(SourceMaker, 1700), (ClassMaker, 300), (OwnMaker, 600)])
def test_every_image_of_a_source_ends_in_exactly_one_place(tmp_path, maker, count):
    make = maker(seed=0)
    seen: Counter[str] = Counter()
    refused = 0
    for number in range(count):
        source, out = tmp_path / "source", tmp_path / "out"
        account = make.make(source)
        try:
            kept, rejected = curate(source, out, maker is ClassMaker)
        except ConfigError as error:  # for damage that leaves nothing to read, or no metadata
            assert maker is OwnMaker, f"source {number}: {account}"
            assert account.damages, f"source {number}: {account}"
            assert "\n" not in str(error), f"source {number}: {account}"
            shutil.rmtree(source)
            refused += 1
            continue
        keys = [key for key, _ in kept]
        found, reasons = Counter(sha256 for _, sha256 in kept), Counter(reason for _, reason in rejected)
        where = f"source {number}: {account}\nkept {kept}\nrejected {rejected}"
        assert len(set(keys)) == len(keys), where
        assert all(count == 1 for count in found.values()), where
        if account.damages:
            check_damaged(account, found, reasons, where)
        else:
            assert found == account.kept, where
            assert reasons == +account.rejected, where
        seen.update(reasons)
        shutil.rmtree(source)
        shutil.rmtree(out)
    assert refused < count / 20
    assert maker is ClassMaker or len(seen) > 12


def test_what_is_refused_is_refused_in_one_line(tmp_path):
    for number, name in enumerate(("photos.7z", "photos.tar.xz", "photos.rar")):
        source = tmp_path / str(number)
        SourceMaker(number).make(source)
        (source / name).write_bytes(b"x")
        with pytest.raises(ConfigError, match="hold images in a form that curate does not read") as error:
            curate(source, tmp_path / "out", by_class=False)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

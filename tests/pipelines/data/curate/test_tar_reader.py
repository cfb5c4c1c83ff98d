"""Samples of tars: grouping, names, order, damage, and sizes that are not true."""

import gzip
import hashlib
import io
import random
import tarfile
import time
import tracemalloc

import pyarrow as pa
import pytest
from tars import offset_of, sample, tar_of, with_header, without_end

from pipelines.data.curate import tar_reader
from pipelines.data.curate.samples import IMAGE_EXTENSIONS, Columns
from pipelines.data.curate.tar_reader import TornSamples, read_tar, read_tar_of_class


@pytest.fixture
def read(tmp_path):
    """Write bytes as a tar and return its samples."""

    def read(data, torn=frozenset()):
        path = tmp_path / "00000.tar"
        path.write_bytes(data)
        return list(read_tar(str(path), Columns(), torn))

    return read


def problems_of(samples):
    return {s.key: s.problem for s in samples}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_samples_are_adjacent_members_of_a_key(read, format, compress):
    long = "very long folder name/" * 8 + "ü"
    samples = read(compress(tar_of(sample("a") + sample(f"./{long}", b"x" * 700) + sample("c"), format)))
    assert [(s.key, s.image, s.caption, s.problem) for s in samples] == [
        ("a", b"image", "caption", ""), (long, b"x" * 700, "caption", ""), ("c", b"image", "caption", "")
    ]  # fmt: skip


def test_dots_in_names(read):
    samples = read(tar_of(sample("IMG 2.0") + sample("IMG 2.1") + sample("v1.2/a") + [(".jpg", b"x")]))
    assert [s.key for s in samples] == ["IMG 2.0", "IMG 2.1", "v1.2/a", ".jpg"]
    assert not any(s.problem for s in samples)


def test_one_name_in_two_folders_is_two_samples(read):
    assert [s.key for s in read(tar_of(sample("cat/0001") + sample("dog/0001")))] == ["cat/0001", "dog/0001"]


@pytest.mark.parametrize("end", [bytes, without_end])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_tars_joined_by_cat(read, end, compress):
    parts = [tar_of(sample(key) + sample(f"{key}2")) for key in "abc"]
    samples = read(b"".join(map(compress, [*map(end, parts[:2]), parts[2]])))
    assert problems_of(samples) == dict.fromkeys(["a", "a2", "b", "b2", "c", "c2"], "")


def test_joined_behind_one_that_was_cut_off(read):
    first = tar_of(sample("a") + sample("b", b"x" * 3000))
    samples = read(first[: offset_of(first, "b.jpg") + 1000] + tar_of(sample("c")))
    assert problems_of(samples) == {"a": "", "b": "false size in tar", "c": ""}


def test_system_files_are_not_samples(read):
    members = [("._cat", b"x"), ("__MACOSX/._a.jpg", b"x"), ("folder/.DS_Store", b"x"), ("Thumbs.db", b"x")]
    pairs = [pair for name, data in sample("a") for pair in ((f"._{name}", b"x"), (name, data))]
    assert problems_of(read(tar_of(members + pairs))) == {"a": ""}


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "a/../../outside"])
def test_paths_that_lead_out_are_named_and_not_followed(read, tmp_path, name):
    samples = read(tar_of(sample("a") + sample(name) + sample("b")))
    assert problems_of(samples) == {"a": "", name: "unsafe path in tar", "b": ""}
    assert [path.name for path in tmp_path.rglob("*")] == ["00000.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_are_not_followed(read, kind):
    data = with_header(tar_of(sample("a", b"") + sample("b")), "a.jpg", typeflag=kind)
    assert problems_of(read(data)) == {"a": "link or special file in tar", "b": ""}


def test_names_that_are_not_utf8_stay_different(read):
    members = [(f"{byte}.{kind}", kind.encode()) for byte in ("\udcff", "\udcfe") for kind in ("jpg", "txt")]
    samples = read(tar_of(members, tarfile.GNU_FORMAT))
    assert [s.key for s in samples] == ["\\xff", "\\xfe"]
    assert not any(s.problem for s in samples)
    assert pa.array([s.key for s in samples]).to_pylist() == ["\\xff", "\\xfe"]


def noise(size):
    return b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(size // 32))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_tar_cut_off_in_the_middle(read, compress):
    data = compress(tar_of([member for key in "abc" for member in sample(key, noise(64_000))]))
    assert problems_of(read(data[: len(data) // 2])) == {"a": "", "b": "tar cut off"}


def test_tar_cut_off_between_two_members(read):
    """What is there of a sample is kept back where the one before had more; a whole one is kept."""
    data = tar_of(sample("a") + sample("b"))
    assert problems_of(read(data[: offset_of(data, "b.json")])) == {"a": "", "b": "tar cut off"}
    assert problems_of(read(data[: offset_of(data, "b.jpg")])) == {"a": "", "": "tar cut off"}
    assert problems_of(read(data[: offset_of(data, "b.jpg") + 100])) == {"a": "", "": "tar cut off"}


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ("a.jpg", {"a": "damaged header in tar", "b": "", "c": ""}),
        ("b.jpg", {"a": "", "b": "damaged header in tar", "c": ""}),
        ("b.txt", {"a": "", "b": "damaged header in tar", "c": ""}),
        ("b.json", {"a": "", "b": "damaged header in tar", "c": ""}),
        ("c.json", {"a": "", "b": "", "c": "damaged header in tar"}),
    ],
)
def test_damaged_header_costs_its_own_sample(read, damaged, expected):
    data = tar_of(sample("a") + sample("b", b"x" * 5000) + sample("c"))
    assert problems_of(read(with_header(data, damaged, chksum=b"0000001"))) == expected


def test_damage_that_no_sample_shows_is_reported(read):
    data = tar_of([(f"{key}.jpg", b"x") for key in "abc"])
    samples = read(with_header(data, "b.jpg", chksum=b"0000001"))
    assert problems_of(samples) == {"a": "", "c": "", "": "damaged header in tar"}


@pytest.mark.parametrize(("size", "reason"), [(b"17777777777", "false size in tar"), (b"00000000000", "not whole")])
def test_false_sizes(read, size, reason):
    data = with_header(tar_of(sample("a") + sample("b", b"x" * 600) + sample("c")), "b.jpg", size=size)
    samples = read(data)
    assert samples[0].problem == samples[-1].problem == ""
    assert (samples[0].key, samples[-1].key) == ("a", "c")
    assert reason == "not whole" or problems_of(samples) == {"a": "", "b": reason, "c": ""}


def pax_of(name, data, **headers):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = len(data), headers
        tar.addfile(info, io.BytesIO(data))
    whole = buffer.getvalue().rstrip(b"\0")
    return whole + bytes(-len(whole) % 512)


@pytest.mark.parametrize("size", [2**60, 10**30, -5, "x", "9" * 5000])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_sizes_beyond_the_bytes_that_are_there_take_no_time(read, size, compress):
    """A tar of 10 KB that stated 2^60 bytes was skipped for ever."""
    data = compress(pax_of("a.jpg", b"x", size=str(size)) + tar_of(sample("b") + sample("c")))
    started = time.perf_counter()
    samples = read(data)
    assert time.perf_counter() - started < 5
    assert [s.key for s in samples if not s.problem][-2:] == ["b", "c"]
    assert size not in (2**60, 10**30) or problems_of(samples) == {"a": "false size in tar", "b": "", "c": ""}


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_many_false_sizes_take_no_time(read, compress):
    """Each of them would have the rest of the tar read, if its end were not known."""
    members = b"".join(pax_of(f"{i}.jpg", b"x", size=str(2**60)) for i in range(2000))
    started = time.perf_counter()
    samples = read(compress(members + noise(1 << 20)))
    assert time.perf_counter() - started < 20
    assert len(samples) == 2000
    assert {s.problem for s in samples} == {"false size in tar", "tar cut off"}


def test_members_that_are_not_needed_are_not_held(tmp_path):
    """One key with 12 members of 250 MiB took 3.6 GiB."""
    big = bytes(8 << 20)
    path = tmp_path / "00000.tar"
    names = [*IMAGE_EXTENSIONS, *(f"x{i}" for i in range(8))]
    path.write_bytes(tar_of([(f"a.{name}", big) for name in names] + sample("b")))
    tracemalloc.start()
    samples = list(read_tar(str(path), Columns()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * len(big)
    assert samples[-1].key == "b"
    assert len(samples) == len(IMAGE_EXTENSIONS) + 1


def test_files_too_large(read, monkeypatch):
    monkeypatch.setattr(tar_reader, "LARGEST_FILE", 1000)
    monkeypatch.setattr(tar_reader, "LARGEST_TEXT", 100)
    members = sample("a", b"x" * 2000) + sample("b", caption=b"x" * 200) + [("c.npy", bytes(3000)), *sample("c")]
    assert problems_of(read(tar_of(members))) == {"a": "file too large", "b": "file too large", "c": ""}


@pytest.mark.parametrize(
    ("data", "problem"), [(b"", "tar cut off"), (b"no tar" * 100, "no readable shard"),
                          (gzip.compress(b"")[:5], "tar cut off"), (gzip.compress(b"none" * 200), "no readable shard")]
)  # fmt: skip
def test_a_file_that_is_not_a_tar_is_reported_once(read, data, problem):
    assert [(s.key, s.problem) for s in read(data)] == [("", problem)]


def test_an_empty_tar_has_no_samples(read):
    assert read(tar_of([])) == []


def test_key_that_comes_again_is_another_sample(read):
    samples = read(tar_of(sample("a") + sample("a") + sample("b") + sample("a", b"third")))
    assert [(s.key, s.problem) for s in samples] == [("a", ""), ("a", ""), ("b", ""), ("a", "")]
    assert samples[3].image == b"third"


def test_interleaved_members_are_rejected_for_their_order(read):
    a, b = sample("a"), sample("b")
    data = tar_of([a[0], b[0], a[1], b[1], a[2], b[2], *sample("c")])
    with pytest.raises(TornSamples) as found:
        read(data)
    assert found.value.keys == {"a", "b"}
    torn = "members of a key are not adjacent in tar"
    assert [(s.key, s.problem) for s in read(data, found.value.keys)] == [("a", torn), ("b", torn), ("c", "")]


def test_a_distant_text_of_the_same_name_does_not_reject_complete_samples(read):
    """The second part of two joined tars lacks an image: that is no reason to doubt the first part's."""
    joined = tar_of(sample("a") + sample("b")) + tar_of(sample("a")[1:])
    assert [(s.key, s.problem) for s in read(joined)] == [("a", ""), ("b", ""), ("a", "no image of its key")]
    assert problems_of(read(tar_of([("a.md", b""), *sample("b"), ("a.jpg", b"x")]))) == {"a": "", "b": ""}


def test_second_image_of_a_key_is_counted(read):
    samples = read(tar_of([("a.jpg", b"one"), ("a.png", b"two"), *sample("b")]))
    assert [(s.key, s.image, s.problem) for s in samples[:2]] == [
        ("a", b"one", ""), ("a.png", b"", "another image of its key is used")
    ]  # fmt: skip


@pytest.mark.parametrize("extension", [*IMAGE_EXTENSIONS, "JPG", "Gif"])
def test_extensions_of_images(read, extension):
    assert problems_of(read(tar_of([(f"a.{extension}", b"x")]))) == {"a": ""}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"json": b"[]"}, "JSON is not a mapping"),
        ({"json": b"{"}, "JSON cannot be read"),
        ({"json": b"[" * 100_000}, "JSON cannot be read"),
        ({"json": b'{"a": ' + b"9" * 10_000 + b"}"}, "JSON cannot be read"),
        ({"json": None}, ""),
        ({"json": None, "txt": None}, ""),
        ({"json": b"\xef\xbb\xbf{}"}, ""),
        ({"txt": b"\xff\xfe"}, "caption is not UTF-8"),
        ({"txt": None}, ""),
        ({"txt": None, "json": b"[]"}, "JSON is not a mapping"),
        ({"txt": None, "json": b'{"caption": 3}'}, ""),
        ({"jpg": None}, "no image of its key"),
        ({"jpg": None, "tiff": b"x"}, "image format tiff is not read"),
        ({"jpg": None, "tar": b"x"}, "archive in tar is not read"),
    ],
)
def test_samples_that_are_not_whole(read, change, problem):
    members = {"jpg": b"x", "txt": b"caption", "json": b"{}", **change}
    samples = read(tar_of([(f"a.{e}", data) for e, data in members.items() if data is not None]))
    assert [s.problem for s in samples] == [problem]


def test_caption_is_that_of_the_text_or_of_the_json(read):
    in_json = {"json": b'{"caption": "json"}'}
    texts = {"a": {"txt": b"\xef\xbb\xbftext", **in_json}, "b": in_json, "c": {"json": b"{}"}, "d": {}}
    samples = read(tar_of([(f"{k}.{e}", d) for k, m in texts.items() for e, d in {"jpg": b"x", **m}.items()]))
    assert [s.caption for s in samples] == ["text", "json", "", ""]


def test_text_that_is_not_unicode_can_be_written_down(read):
    (found,) = read(tar_of([("a.jpg", b"x"), ("a.json", b'{"caption": "half \\ud83d a pair"}')]))
    assert pa.array([found.caption]).to_pylist() == ["half ? a pair"]


def test_tar_of_a_class_holds_images_alone(tmp_path):
    path = tmp_path / "n01.tar"
    names = ["a.JPEG", "a.png", "x/a.jpg", "a.txt", "b.tiff", "README"]
    path.write_bytes(tar_of([(name, name.encode()) for name in names]))
    assert [(s.key, s.image, s.problem) for s in read_tar_of_class(str(path))] == [
        ("a", b"a.JPEG", ""), ("a", b"a.png", ""), ("x/a", b"x/a.jpg", ""), ("b", b"", "image format tiff is not read")
    ]  # fmt: skip


def test_reading_ends_whatever_the_bytes_are(read):
    """A damaged sample may be lost and is reported; those that no damaged byte touches are there."""
    rng = random.Random(0)
    keys = [f"{i:03d}" for i in range(12)]
    whole = tar_of([member for key in keys for member in sample(key, noise(640))])
    starts = [offset_of(whole, f"{key}.jpg") for key in keys] + [len(whole)]
    for _ in range(300):
        data, touched = bytearray(whole), set()
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(starts[-2])
            data[place] ^= 1 << rng.randrange(8)
            touched.add(keys[next(i for i, start in enumerate(starts[1:]) if place < start)])
        try:
            samples = read(bytes(data))
        except TornSamples as torn:
            samples = read(bytes(data), torn.keys)
        good = [s.key for s in samples if not s.problem]
        assert set(keys) - touched <= set(good)
        assert len(good) <= len(keys)
        assert all(s.key.encode() for s in samples if not s.problem)

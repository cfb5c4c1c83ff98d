"""Random sources of one's own images in every layout that curate reads, each with the account of what it holds."""

import csv
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from random_sources import FORMATS, LITTER, Account, SourceMaker

HIDDEN = (".cache/a.jpg", ".hidden.png", *LITTER)
STEMS = ("0001", "IMG 2.0", "IMG 2.1", "ü ñ", "日本", "a" * 100, "-", "#2", "0001#2", "a::b", "x!y")
FOLDERS = ("", "cats", "deep/part.2")


class OwnMaker(SourceMaker):
    """Makes sources of one layout after another, perhaps inside a zip, perhaps damaged."""

    def make(self, folder: Path) -> Account:
        account = Account()
        files: dict[str, bytes] = {}
        layout = self.rng.choice(
            (self.with_captions, self.with_metadata, self.with_table, self.saved, self.downloaded, self.with_captions)
        )
        layout(files, account)
        for name in self.rng.sample(HIDDEN, self.rng.choice((0, 0, 2))):
            files[name] = b"x"
        files |= {"README.md": b"x", "notes.txt": b"x", "thumbs/list.npy": b"x"}
        if self.rng.random() < 0.4:
            return self.write_zip(folder, files, account)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return account

    def write_zip(self, folder: Path, files: dict[str, bytes], account: Account) -> Account:
        """Put the files into a zip, perhaps with members that are not read, perhaps damaged."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", self.rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            if self.rng.random() < 0.3:
                archive.writestr("../outside.jpg", b"x")
                account.rejected["unsafe path in zip"] += 1
            if self.rng.random() < 0.2:
                archive.writestr("more.zip", b"x")
                account.rejected["archive in zip is not read"] += 1
        data = buffer.getvalue()
        if self.rng.random() < 0.3:
            data = self.damaged(data)
            account.damages += 1
            account.touched |= set(account.kept)  # a zip is read by its end: damage may cost all
        folder.mkdir(parents=True)
        (folder / "photos.zip").write_bytes(data)
        return account

    def some_images(self, account: Account) -> dict[str, bytes]:
        """Return images by path; some are no images or of a format that is not read."""
        found = {}
        for stem in self.rng.sample(STEMS, self.rng.randint(1, 5)):
            format = self.rng.choice(sorted(FORMATS))
            path = "/".join(filter(None, [self.rng.choice(FOLDERS), f"{stem}.{format}"]))
            found[path] = self.new_image(FORMATS[format])
        return found

    def with_captions(self, files: dict[str, bytes], account: Account) -> None:
        """A folder of images with captions in .txt or .caption."""
        for path, image in self.some_images(account).items():
            files[path] = image
            stem = path.rpartition(".")[0]
            kind = self.rng.choice(("txt", "caption", "caption", "json", "none", "bytes"))
            if kind in ("txt", "caption"):
                files[f"{stem}.{kind}"] = b"\xef\xbb\xbfa caption\n"
            elif kind == "json":
                files[f"{stem}.json"] = json.dumps({"caption": "a caption"}).encode()
            elif kind == "bytes":
                files[f"{stem}.txt"] = b"\xff\xfe"
            account.put(image, {"none": "empty caption", "bytes": "caption is not UTF-8"}.get(kind, ""))
        if not any(name.endswith((".txt", ".caption", ".json")) for name in files):
            files["last.png"], files["last.txt"] = self.new_image("PNG"), b"a caption"
            account.put(files["last.png"])
        if self.rng.random() < 0.3:
            files["scan.tif"] = files["scan.txt"] = b"x"
            account.rejected["image format tif is not read"] += 1
        if self.rng.random() < 0.3:
            files["page.jpg"], files["page.txt"] = b"<html>", b"x"
            account.rejected["not an image"] += 1

    def rows_of(self, images: dict[str, bytes], account: Account) -> list[tuple[str, str]]:
        """Return rows (path, caption): some images have none, some rows have no image."""
        rows = []
        for number, (path, image) in enumerate(images.items()):
            if number and self.rng.random() < 0.15:
                account.put(image, "no row in metadata")
                continue
            account.put(image)
            rows.append((self.rng.choice(("", "./")) + path, "a caption, of two\nlines"))
            if self.rng.random() < 0.1:
                rows.append((path, "another caption"))
                account.rejected["another metadata row of its image is used"] += 1
        lost = {
            "gone.jpg": "image of metadata row is missing", "../../gone.jpg": "unsafe path in metadata",
            "/etc/gone.jpg": "unsafe path in metadata", "": "metadata row without image",
        }  # fmt: skip
        for path, reason in lost.items():
            if self.rng.random() < 0.2:
                rows.append((path, "a caption"))
                account.rejected[reason] += 1
        return rows

    def with_metadata(self, files: dict[str, bytes], account: Account) -> None:
        """A folder of images with a metadata file: imagefolder's, or that of DiffSynth."""
        images = self.some_images(account)
        files |= images
        rows = self.rows_of(images, account)
        image = self.rng.choice(("file_name", "image"))
        caption = self.rng.choice(("caption", "text", "prompt", "beschreibung"))
        table = [{image: path, caption: text, "number": 3} for path, text in rows]
        kind = self.rng.choice(("jsonl", "csv", "parquet"))
        if kind == "jsonl":
            files["metadata.jsonl"] = b"".join(json.dumps(row).encode() + b"\n" for row in table)
        elif kind == "parquet":
            files["metadata.parquet"] = parquet_of(pa.Table.from_pylist(table))
        else:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, [image, caption, "number"])
            writer.writeheader()
            writer.writerows(table)
            files["metadata.csv"] = text.getvalue().encode("utf-8-sig")

    def some_table(self, account: Account) -> pa.Table:
        """A table of images as Hugging Face `datasets` has them."""
        images: list[bytes | None] = [self.new_image("PNG") for _ in range(self.rng.randint(1, 5))]
        for image in images[1:]:
            account.put(image)
        if len(images) > 1 and self.rng.random() < 0.3:
            images[0] = None
            account.rejected["no image of its key"] += 1
        else:
            account.put(images[0])
        cells = [{"bytes": image, "path": None} for image in images]
        if images[0] is None:
            cells[0] = None
        return pa.table({"image": cells, self.rng.choice(("text", "legende")): ["a caption"] * len(cells)})

    def with_table(self, files: dict[str, bytes], account: Account) -> None:
        """A folder of parquet as the hub has it."""
        files["data/train-00000-of-00002.parquet"] = parquet_of(self.some_table(account))

    def saved(self, files: dict[str, bytes], account: Account) -> None:
        """A data set saved by `save_to_disk`, with a cached file beside its own."""
        folder = self.rng.choice(("", "train/"))
        table = self.some_table(account)
        data = arrow_of(table)
        if self.rng.random() < 0.3:
            data = data[: self.rng.randrange(len(data))]
            account.damages += 1
            account.touched |= set(account.kept)
        files[f"{folder}data-00000-of-00001.arrow"] = data
        files[f"{folder}cache-0123.arrow"] = arrow_of(table)
        names = ["data-00000-of-00001.arrow"]
        if self.rng.random() < 0.2:
            names.append("data-00001-of-00001.arrow")
            account.rejected["Arrow file of state.json is missing"] += 1
        files[f"{folder}state.json"] = json.dumps({"_data_files": [{"filename": name} for name in names]}).encode()
        files[f"{folder}dataset_info.json"] = b"{}"

    def downloaded(self, files: dict[str, bytes], account: Account) -> None:
        """The `files` output of img2dataset: a folder with its metadata beside it."""
        keys = [f"00000{number:04d}" for number in range(self.rng.randint(1, 4))]
        for key in keys:
            image = self.new_image("JPEG")
            files[f"00000/{key}.jpg"] = image
            files[f"00000/{key}.txt"] = b"a caption"
            files[f"00000/{key}.json"] = b"{}"
            account.put(image)
        account.rejected["failed download"] += 1
        account.rejected["not in the folder"] += 1
        stated = [*keys, "000009998", "000009999"]
        statuses = ["success"] * (len(keys) + 1) + ["failed_to_download"]
        files["00000.parquet"] = parquet_of(pa.table({"key": stated, "status": statuses}))
        files["00000_stats.json"] = b"{}"


def parquet_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def arrow_of(table: pa.Table, rows: int = 2) -> bytes:
    """The stream that Hugging Face `datasets` saves."""
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return buffer.getvalue()

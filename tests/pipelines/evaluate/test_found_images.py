import json

import pytest

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.evaluate.found_images import match_images
from pipelines.evaluate.prompts import Prompt, list_generations


@pytest.fixture
def match(tmp_path):
    """Return a function of names, the items' IDs and repeats: {(index of the prompt, repeat): name}."""

    def make(names, prompts=12, repeats=1, files=None):
        root = str(tmp_path / "images")
        prompts = [f"{i:05}" for i in range(prompts)] if isinstance(prompts, int) else prompts
        generations = list_generations([Prompt(id, f"prompt {id}") for id in prompts], repeats)
        for name in names:
            storage.write_bytes(storage.join(root, name), b"image")
        for name, text in (files or {}).items():
            storage.write_bytes(storage.join(root, name), text.encode())
        found = match_images(root, generations, repeats)
        return {place: file[len(root) + 1 :] for place, file in found.files.items()}

    return make


NAMES = ["{}.png", "{:05}.jpg", "a fox {}.webp", "seed42_{}_v2.png", "out/{}.PNG", "{0}/{0}.png"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_are_indices_of_images(match, name, first):
    names = [name.format(i + first) for i in range(12)]
    assert match(reversed(names)) == {(i, 0): names[i] for i in range(12)}  # 2 comes before 10


def test_running_numbers_count_prompts_and_then_repeats(match):
    assert match([f"{i}.png" for i in range(12)], prompts=4, repeats=3) == {
        (i // 3, i % 3): f"{i}.png" for i in range(12)
    }


@pytest.mark.parametrize("name", ["{p:05}-{r}.png", "{p}/{r}.png", "pixel/{p:05}_seed{r}.png", "{r}/{p:04}.png"])
def test_a_number_per_prompt_and_one_per_repeat(match, name):
    names = {(p, r): name.format(p=p, r=r) for p in range(11) for r in range(3)}
    assert match(names.values(), prompts=11, repeats=3) == names


def test_geneval_writes_folders_with_records_and_grids(match):
    names = {(p, r): f"{p:05}/samples/{r:04}.png" for p in range(4) for r in range(4)}
    extra = {f"{p:05}/grid.png": "x" for p in range(4)}
    record = {f"{p:05}/metadata.jsonl": json.dumps({"prompt": f"prompt {p:05}", "tag": "colors"}) for p in range(4)}
    assert match(names.values(), prompts=4, repeats=4, files=extra | record) == names
    wrong = {"00002/metadata.jsonl": json.dumps({"prompt": "another"})}
    with pytest.raises(ConfigError, match="00002/metadata.jsonl has 'another', but prompt 2 .* is 'prompt 00002'"):
        match(names.values(), prompts=4, repeats=4, files=extra | wrong)


@pytest.mark.parametrize("name", ["{}_{}.png", "{}-{}.png", "{}/{}.png", "images/{}_{}.png"])
def test_names_of_items(match, name):
    items = ["partiprompts10", "COCOval2014_000042", "a dog-1"]
    names = {(p, r): name.format(item, r) for p, item in enumerate(items) for r in range(2)}
    assert match(names.values(), prompts=items, repeats=2) == names


def test_items_with_one_image_each(match):
    items = ["stanford-2", "Animals-0001", "vrd10"]
    assert match(["stanford-2.png", "Animals/0001.jpg", "vrd10.webp"], prompts=items) == {
        (0, 0): "stanford-2.png", (1, 0): "Animals/0001.jpg", (2, 0): "vrd10.webp",
    }  # fmt: skip


def test_our_own_names_hold_the_prompt(match):
    generations = list_generations([Prompt(f"{i:05}", f"prompt {i:05}") for i in range(3)], 2)
    names = [f"{generation.key}.png" for generation in generations]
    assert match(names, prompts=3, repeats=2) == {(i // 2, i % 2): name for i, name in enumerate(names)}


@pytest.mark.parametrize(
    "rows",
    [
        {"images.csv": "file,index\nz.png,0\ny.png,1\nx/a.png,2\nw.png,3\n"},
        {"images.csv": "id,repeat,file\n00000,0,z.png\n00000,1,y.png\n00001,0,x/a.png\n00001,1,w.png\n"},
        {
            "images.jsonl": "\n".join(
                json.dumps({"file": file, "prompt": f"prompt {p:05}", "repeat": r})
                for file, p, r in [("z.png", 0, 0), ("y.png", 0, 1), ("x/a.png", 1, 0), ("w.png", 1, 1)]
            )
        },
    ],
)
def test_a_mapping_file_is_used(match, rows):
    found = match(["z.png", "y.png", "x/a.png", "w.png", "unused.png"], prompts=2, repeats=2, files=rows)
    assert found == {(0, 0): "z.png", (0, 1): "y.png", (1, 0): "x/a.png", (1, 1): "w.png"}


@pytest.mark.parametrize(
    ("names", "prompts", "repeats", "files", "named"),
    [
        (["a.png", "b.png", "c.png"], 3, 1, {}, "names such as 'a' do not .* number the images 0 to 2.* images.csv"),
        (["0.png", "1.png", "3.png"], 3, 1, {}, "do not identify"),
        (["7.png", "8.png", "9.png"], 3, 1, {}, "do not identify"),
        (["0.png", "00.png", "1.png"], 3, 1, {}, "do not identify"),
        (["0.png", "0.jpg", "1.png"], 3, 1, {}, "two images differ only in their suffix"),
        (["0.png", "1.png"], 3, 1, {}, "there are 2 images, the suite needs 3"),
        (["0-91.png", "1-17.png", "2-64.png"], 3, 1, {}, "do not identify"),  # a seed, perhaps
        (["0-0.png", "0-1.png", "1-0.png", "1-1.png"], 2, 2, {}, "do not identify"),  # which of the two is the prompt?
        (["0.png", "1.png", "x.png"], 3, 1, {}, "do not identify"),
        (["0.png", "1.png"], 2, 1, {"images.csv": "file,index\n0.png,1\n"}, "1 of 2 images are matched"),
        (["0.png"], 1, 1, {"images.csv": "file,index\n1.png,0\n"}, "'1.png' is in the mapping, but not"),
        (["0.png"], 1, 1, {"images.csv": "file,index\n0.png,1\n"}, "line 2: index='1' is not a number from 0 to 0"),
        (["0.png"], 1, 1, {"images.csv": "file,prompt\n0.png,a fox\n"}, "prompt='a fox' matches 0 prompts"),
        (["0.png"], 1, 1, {"images.csv": "name\n0.png\n"}, "no column file"),
    ],
)
def test_ambiguous_names_are_refused(match, names, prompts, repeats, files, named):
    with pytest.raises(ConfigError, match=named):
        match(names, prompts, repeats, files)

"""Self-test: synthetic detections, answers, scores and features with known results for each suite's measures.

It shows that an installation computes the same as this project's tests, before GPU hours are spent; it needs no model.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asymflow.metrics.geneval import judge, keep_detections
from pipelines.evaluate.config import Bootstrap
from pipelines.evaluate.image_sets import ImageSet
from pipelines.evaluate.known_questions import JUDGED
from pipelines.evaluate.measures import MeasureInput, ScoredImages
from pipelines.evaluate.prompts import Prompt, list_generations, read_dpg
from pipelines.evaluate.suites import SUITES

TOLERANCE = 1e-6
"""Relative tolerance, for float32 sums in another order"""
PROMPTS, REAL = 40, 60
NO_INTERVALS = Bootstrap(resamples=0, set_resamples=0)

EXPECTED: dict[str, dict[str, float]] = {
    "demo": {
        "sliced_wasserstein": 0.0381966958713,
        "sliced_wasserstein_high_pass": 0.0376576600498,
        "spectrum": 0.0603675172611,
        "high_frequency_power": 1.03726483693,
        "imagenet_frechet": 0.885967896975,
    },
    "classes": {
        "frechet": 0.996039596673,
        "sliced_wasserstein": 0.0394123074988,
        "sliced_wasserstein_high_pass": 0.0380539404663,
        "spectrum": 0.0660959227461,
    },
    "coco10k": {
        "hpsv3": 0.610369766468,
        "hpsv2.1": 0.700953865787,
        "vqa_score": 0.618185830058,
        "clip_score": 0.632370381183,
        "fid": 0.996039596673,
        "pfid": 0.996039596673,
    },
    "hpsv3_benchmark": {
        "hpsv3": 0.639096060221,
        "hpsv3/a": 0.690885220721,
        "hpsv3/b": 0.55526438151,
        "hpsv3/c": 0.671138578433,
    },
    "dpg": {
        "dpg": 48.6111111111,
        "dpg/attribute": 37.5,
        "dpg/entity": 62.5,
        "dpg/other": 50,
        "dpg/relation": 50,
        "dpg_official/attribute": 50,
        "dpg_official/entity": 75,
        "dpg_official/other": 100,
        "dpg_official/relation": 100,
    },
    "geneval": {
        "geneval-hf": 0.416666666667,
        "geneval-hf/single_object": 0.5,
        "geneval-hf/two_object": 0.5,
        "geneval-hf/counting": 0.25,
        "geneval-hf/colors": 0.5,
        "geneval-hf/position": 0.25,
        "geneval-hf/color_attr": 0.5,
    },
    "imagenet50k": {
        "fid": 0.885967896975,
        "sfid": 0.902098459621,
        "inception_score": 2.4349357142,
        "precision": 0.966666666667,
        "recall": 1.0,
    },
    "geneval2": {
        "soft_tifa_am": 45.8333333333,
        "soft_tifa_gm": 35,
        "tifa": 50,
        "soft_tifa_am/attribute": 50,
        "soft_tifa_am/count": 25,
        "soft_tifa_am/object": 63.3333333333,
        "soft_tifa_am/position": 10,
        "soft_tifa_gm/2 atoms": 20,
        "soft_tifa_gm/3 atoms": 50,
    },
    "preference": {"pick_score": 0.610369766468, "image_reward": 0.618185830058, "aesthetic": 0.700953865787},
    "longtext_en": {"text_score": 40, "text_score/poster": 0, "text_score/sign": 66.6666666667},
    "longtext_zh": {"text_score": 83.3333333333, "text_score/poster": 100, "text_score/sign": 50},
    "unigenbench": {
        "unigenbench": 40,
        "unigenbench/Attribute": 33.3333333333,
        "unigenbench/Style": 100,
        "unigenbench/World Knowledge": 0,
        "unigenbench_points/Attribute - Color": 50,
        "unigenbench_points/Attribute - Size": 0,
        "unigenbench_points/Style": 100,
        "unigenbench_points/World Knowledge": 0,
        "unreadable_replies": 50,
    },
    "oneig_alignment": {
        "oneig_alignment": 0.458333333333,
        "oneig_alignment/Anime_Stylization": 0.333333333333,
        "oneig_alignment/General_Object": 0.5,
        "oneig_alignment/Portrait": 0.5,
    },
    "questions": {"answered": 50, "answered/color": 10, "answered/object": 70},
}


def run_self_test(suites: Sequence[str]) -> int:
    """Print a line per number. Returns the exit status: 0 if all are as expected, else 1."""
    wrong = 0
    for suite in suites:
        found, expected = run(suite), EXPECTED[suite]
        for name in sorted(expected.keys() | found.keys()):
            value, known = found.get(name, float("nan")), expected.get(name, float("nan"))
            right = abs(value - known) <= TOLERANCE * max(1.0, abs(known))
            wrong += not right
            note = "" if right else f", not {known:.9g}"
            print(f"{'ok  ' if right else 'FAIL'}  {suite}  {name}  {value:.9g}{note}")
    print(f"{wrong} wrong" if wrong else "all passed")
    return int(wrong > 0)


def run(suite: str) -> dict[str, float]:
    """Return {metric or metric/category: value} of the suite's measures for the synthetic scores."""
    evaluated = MADE_UP.get(suite, _made_up)(suite)
    rows = [row for measure in SUITES[suite].measures for row in measure.rows(evaluated)]
    return {"/".join(filter(None, (row["metric"], row["category"]))): row["value"] for row in rows}


@dataclass(frozen=True)
class _Given:
    """Synthetic `Scores`."""

    plain: Sequence[dict[str, Any]] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        return list(self.plain)

    def features(self, name: str) -> Iterator[Tensor]:
        yield from self.tensors[name].split(16)


@dataclass(frozen=True)
class _Sampled(ScoredImages):
    images: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def tensor(self) -> Tensor:  # type: ignore[override]
        return self.images


def wave(count: int, width: int, frequency: float) -> Tensor:
    """Return (count, width) float64 numbers in [-1, 1] without visible order, the same on every machine."""
    places = torch.arange(count * width, dtype=torch.float64).view(count, width)
    return torch.sin(places.square() * 1e-3 * frequency + places * frequency)


def _given(count: int, frequency: float) -> dict[str, Any]:
    """Return synthetic outputs of all scorers."""
    values = wave(count, 40, frequency)
    spectra = torch.exp(values[:, :9])
    scorers = ("hps_v3", "hps_v2", "vqa_score", "clip_score", "spectrum")
    inception = {"pool": values[:, :12], "spatial": values[:, 12:24], "logits": 4 * values[:, 24:]}
    plain = {name: _Given([{"score": float(v)} for v in values[:, i].abs()]) for i, name in enumerate(scorers)}
    plain["spectrum"] = _Given(plain["spectrum"].plain, {"radial": spectra})
    networks = ("inception", "inception_crop", "inception_as_is", "squeeze", "efficientnet")
    extracted = {name: _Given([], inception) for name in networks}
    preference = {"pick_score": plain["hps_v3"], "aesthetic": plain["hps_v2"], "image_reward": plain["vqa_score"]}
    return {**plain, **extracted, **preference}


def _evaluated(prompts: list[Prompt], repeats: int, scores: Mapping[str, Any]) -> MeasureInput:
    generations = list_generations(prompts, repeats)

    def sampled(count: int, frequency: float, scores: Mapping[str, Any]) -> _Sampled:
        images = wave(count, 3 * 24 * 24, frequency).float().view(count, 3, 24, 24)
        return _Sampled(ImageSet("", {}, {}), scores, images)

    made = sampled(len(generations), 0.731, scores)
    return MeasureInput(generations, repeats, made, sampled(REAL, 0.517, _given(REAL, 0.517)), None, NO_INTERVALS)


def _made_up(suite: str) -> MeasureInput:
    prompts = [Prompt(str(i), f"prompt {i}", "abc"[i * i % 7 % 3]) for i in range(PROMPTS)]
    repeats = min(SUITES[suite].images_per_prompt, 3)
    return _evaluated(prompts, repeats, _given(PROMPTS * repeats, 0.731))


_QUESTIONS = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,\
question_natural_language
a,a red cube on a table,,1,0,entity,whole,entity - whole (cube),Is there a cube?
a,a red cube on a table,,2,0,entity,whole,entity - whole (table),Is there a table?
a,a red cube on a table,,3,1,attribute,color,"attribute - color (cube, red)",Is the cube red?
a,a red cube on a table,,4,"1,2",relation,spatial,"relation - spatial (cube, table, on)",Is the cube on the table?
b,two birds singing,,1,0,entity,whole,entity - whole (birds),Are there birds?
b,two birds singing,,2,1,other,count,"other - count (birds, ==2)",Are there two birds?
b,two birds singing,,3,2,relation,non-spatial,"relation - non-spatial (birds, sing)",Do the two birds sing?
c,an old map,,1,2,attribute,state,"attribute - state (map, old)",Is the map old?
c,an old map,,2,0,entity,whole,entity - whole (map),Is there a map?
"""
_ANSWERS = {"a": ("yyyy", "nyyy", "ynyy", "yyny"), "b": ("yyy", "nyy", "yny", "yyy"), "c": ("yn", "yy", "nn", "yn")}


def _dpg(suite: str) -> MeasureInput:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "questions.csv"
        file.write_text(_QUESTIONS, "utf-8")
        prompts = read_dpg(str(file), "")
    rows = []
    for prompt in prompts:
        for answers in _ANSWERS[prompt.id]:
            answered = zip(prompt.data["questions"], answers, strict=True)
            rows.append({"answers": json.dumps({question: answer == "y" for question, answer in answered})})
    return _evaluated(prompts, 4, {"dpg": _Given(rows)})


def _geneval(suite: str) -> MeasureInput:
    """Return one prompt per task, four images each: right, too few, too many or misplaced, and empty."""
    cat, dog = (10.0, 10.0, 60.0, 60.0, 0.95), (120.0, 10.0, 180.0, 70.0, 0.8)
    faint, other = (10.0, 10.0, 60.0, 60.0, 0.2), (200.0, 200.0, 240.0, 240.0, 0.93)
    one = [{"class": "cat", "count": 1}]
    metadata_by_tag: dict[str, dict[str, Any]] = {
        "single_object": {"include": one},
        "two_object": {"include": [*one, {"class": "dog", "count": 1}]},
        "counting": {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]},
        "colors": {"include": [{"class": "cat", "count": 1, "color": "red"}]},
        "position": {"include": [{"class": "dog", "count": 1}, {**one[0], "position": ["left of", 0]}]},
        "color_attr": {
            "include": [{**one[0], "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}],
        },
    }
    scenes: list[dict[str, list]] = [
        {"cat": [cat, other], "dog": [dog]},
        {"cat": [faint], "dog": [dog]},
        {"cat": [cat, other, cat], "dog": [cat]},
        {},
    ]
    colors = {"cat": "red", "dog": "blue"}
    rows = []
    for tag, metadata in metadata_by_tag.items():
        for scene in scenes:
            objects = {name: keep_detections(boxes, tag) for name, boxes in scene.items()}
            correct, _ = judge(metadata, objects, lambda name, box: colors[name])
            rows.append({"correct": correct})
    prompts = [Prompt(tag, tag, tag, metadata) for tag, metadata in metadata_by_tag.items()]
    return _evaluated(prompts, len(scenes), {"geneval": _Given(rows)})


def _judged(suite: str) -> MeasureInput:
    prompts, scores = JUDGED[suite]()
    return _evaluated(prompts, 1, {name: _Given(rows) for name, rows in scores.items()})


MADE_UP: dict[str, Callable[[str], MeasureInput]] = {
    "dpg": _dpg,
    "geneval": _geneval,
    **dict.fromkeys(JUDGED, _judged),
}

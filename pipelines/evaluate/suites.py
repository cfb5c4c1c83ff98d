"""The suites as data: prompts, images per prompt, sampling parameters, scorers and measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.evaluate.config import Model
from pipelines.evaluate.measures import DpgCategories, Mean, Measure, dpg_score
from pipelines.evaluate.prompts import Reader, read_captions, read_dpg, read_geneval, read_hpsv3, read_labels
from pipelines.evaluate.question_files import (
    read_geneval2,
    read_long_text,
    read_oneig,
    read_questions,
    read_unigenbench,
)
from pipelines.evaluate.question_measures import (
    Pooled,
    PooledErrors,
    chinese_matches,
    english_matches,
    oneig_alignment,
    points_met,
    primary_dimensions,
    probability_by_group,
    soft_tifa_am,
    soft_tifa_gm,
    soft_tifa_gm_by_category,
    tifa,
    unreadable_replies,
)
from pipelines.evaluate.set_measures import (
    FlatGround,
    Frechet,
    HighFrequencyPower,
    InceptionScore,
    PrecisionRecall,
    SlicedWasserstein,
    SpectrumDistance,
)

KLEIN = {"height": 1024, "width": 1024, "steps": 32, "guidance": 4.0, "orthogonal": True}
"""Sampling parameters of text-to-image benchmarks in the paper; noise and clamping are the defaults"""

JIT = {"steps": 50, "solver": "heun", "orthogonal": False, "clamp": False, "shift": 1.0, "sigma_floor": 0.04}
"""Sampling parameters of class-conditional models (App. B.1)"""


@dataclass(frozen=True)
class Suite:
    """A benchmark."""

    about: str
    read: Reader | None
    """None: the prompts are the held-out captions of a curate artifact, whose images are the reference"""
    file: str
    """Description of `prompts.file`; empty: none is needed"""
    prompts: int | None
    """Number of prompts of the benchmark"""
    images_per_prompt: int
    scorers: tuple[str, ...]
    measures: tuple[Measure, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of `sampling`"""
    models: tuple[Model, ...] = ("trained",)
    by_class: bool = False
    """Whether its models are class-conditional"""


SUITES: dict[str, Suite] = {
    "demo": Suite(
        about="distances to held-out real images, and the noise on plain grounds",
        read=None,
        file="",
        prompts=None,
        images_per_prompt=3,
        scorers=("spectrum", "efficientnet"),
        measures=(
            SlicedWasserstein("sliced_wasserstein"),
            SlicedWasserstein("sliced_wasserstein_high_pass", high_pass=True),
            SpectrumDistance("spectrum"),
            HighFrequencyPower("high_frequency_power"),
            Frechet("imagenet_frechet", "efficientnet"),
            FlatGround("flat_ground"),
        ),
        models=("latent", "lifted", "trained"),
    ),
    "classes": Suite(
        about="distances of a class-conditional model's images to held-out real ones of the same classes",
        read=None,
        file="",
        prompts=None,
        images_per_prompt=1,
        scorers=("squeeze", "spectrum"),
        measures=(
            Frechet("frechet", "squeeze"),
            SlicedWasserstein("sliced_wasserstein"),
            SlicedWasserstein("sliced_wasserstein_high_pass", high_pass=True),
            SpectrumDistance("spectrum"),
        ),
        sampling=JIT,
        by_class=True,
    ),
    "coco10k": Suite(
        about="10,000 captions of COCO 2014 val: preference, alignment and distribution (Table 3)",
        read=read_captions,
        file="the captions of Lakonik/t2i-prompts-coco-10k, split test: .parquet, .jsonl, or a line each",
        prompts=10_000,
        images_per_prompt=1,
        scorers=("hps_v3", "hps_v2", "vqa_score", "clip_score", "inception", "inception_crop"),
        measures=(
            Mean("hpsv3", "hps_v3"),
            Mean("hpsv2.1", "hps_v2"),
            Mean("vqa_score", "vqa_score"),
            Mean("clip_score", "clip_score"),
            Frechet("fid", "inception"),
            Frechet("pfid", "inception_crop"),
        ),
        sampling=KLEIN,
    ),
    "hpsv3_benchmark": Suite(
        about="HPSv3's benchmark: the unweighted mean of twelve categories (Table 4)",
        read=read_hpsv3,
        file="the folder `benchmark` of MizzenAI/HPDv3, twelve benchmark_<Category>.json",
        prompts=None,
        images_per_prompt=1,
        scorers=("hps_v3",),
        measures=(Mean("hpsv3", "hps_v3", by_category=True),),
        sampling=KLEIN,
    ),
    "dpg": Suite(
        about="DPG-Bench: long prompts, checked by yes/no questions (Table 4)",
        read=read_dpg,
        file="dpg_bench.csv of ELLA",
        prompts=1065,
        images_per_prompt=4,
        scorers=("dpg",),
        measures=(Mean("dpg", "dpg", value=dpg_score, scale=100), DpgCategories("dpg")),
        sampling=KLEIN,
    ),
    "geneval": Suite(
        about="GenEval: objects, counts, colors and positions, with a detector of transformers (Table 4)",
        read=read_geneval,
        file="evaluation_metadata.jsonl (metadata.jsonl) of GenEval",
        prompts=553,
        images_per_prompt=4,
        scorers=("geneval",),
        measures=(Mean("geneval-hf", "geneval", column="correct", by_category=True),),
        sampling=KLEIN,
    ),
    "imagenet50k": Suite(
        about="50,000 class-conditional images of 256 x 256 by ADM's protocol",
        read=read_labels,
        file="",
        prompts=1000,
        images_per_prompt=50,
        scorers=("inception_as_is",),
        measures=(
            Frechet("fid", "inception_as_is"),
            Frechet("sfid", "inception_as_is", feature="spatial"),
            InceptionScore("inception_score", "inception_as_is"),
            PrecisionRecall("inception_as_is"),
        ),
        sampling={**JIT, "height": 256, "width": 256, "guidance": 2.3, "guidance_interval": (0.0, 0.88)},
        by_class=True,
    ),
    "geneval2": Suite(
        about="GenEval 2: objects, attributes, counts, positions and verbs, by Soft-TIFA",
        read=read_geneval2,
        file="geneval2_data.jsonl of facebookresearch/GenEval2",
        prompts=800,
        images_per_prompt=1,
        scorers=("geneval2",),
        measures=(
            Mean("soft_tifa_am", "geneval2", value=soft_tifa_am, scale=100),
            Mean("soft_tifa_gm", "geneval2", value=soft_tifa_gm, scale=100),
            Mean("tifa", "geneval2", value=tifa, scale=100),
            Pooled("soft_tifa_am", "geneval2", probability_by_group),
            Pooled("soft_tifa_gm", "geneval2", soft_tifa_gm_by_category),
        ),
        sampling=KLEIN,
    ),
    "questions": Suite(
        about="your own questions about your own prompts, by the probability of the accepted answers",
        read=read_questions,
        file="JSON lines with prompt and questions, a list of {question, answers, group}",
        prompts=None,
        images_per_prompt=1,
        scorers=("judge",),
        measures=(Pooled("answered", "judge", probability_by_group, overall=True),),
    ),
    "preference": Suite(
        about="human preference and aesthetics of images for any prompts",
        read=read_captions,
        file="prompts, such as those of Pick-a-Pic's or PartiPrompts' test split: .parquet, .jsonl, or a line each",
        prompts=None,
        images_per_prompt=1,
        scorers=("pick_score", "image_reward", "aesthetic"),
        measures=tuple(Mean(name, name) for name in ("pick_score", "image_reward", "aesthetic")),
        sampling=KLEIN,
    ),
    "longtext_en": Suite(
        about="LongText-Bench: long English texts in images, read by a vision-language model",
        read=read_long_text,
        file="text_prompts.jsonl of X-Omni/LongText-Bench",
        prompts=160,
        images_per_prompt=4,
        scorers=("long_text",),
        measures=(Pooled("text_score", "long_text", english_matches, overall=True),),
        sampling=KLEIN,
    ),
    "longtext_zh": Suite(
        about="LongText-Bench: long Chinese texts in images, read by a vision-language model",
        read=read_long_text,
        file="text_prompts_zh.jsonl of X-Omni/LongText-Bench",
        prompts=160,
        images_per_prompt=4,
        scorers=("long_text",),
        measures=(Pooled("text_score", "long_text", chinese_matches, overall=True),),
        sampling=KLEIN,
    ),
    "unigenbench": Suite(
        about="UniGenBench++: test points of ten dimensions, by the benchmark's offline judge",
        read=read_unigenbench,
        file="test_prompts_en.csv (or another of CodeGoat24/UniGenBench's data)",
        prompts=600,
        images_per_prompt=4,
        scorers=("unigenbench",),
        measures=(
            Pooled("unigenbench", "unigenbench", primary_dimensions, overall=True),
            Pooled("unigenbench_points", "unigenbench", points_met),
            PooledErrors("unreadable_replies", "unigenbench", unreadable_replies, overall=True),
        ),
        sampling=KLEIN,
    ),
    "oneig_alignment": Suite(
        about="OneIG-Bench's alignment: yes/no questions about three categories of prompts",
        read=read_oneig,
        file="the folder of OneIG-Bench/OneIG-Benchmark, with OneIG-Bench.csv and scripts/alignment/Q_D",
        prompts=695,
        images_per_prompt=4,
        scorers=("oneig",),
        measures=(Pooled("oneig_alignment", "oneig", oneig_alignment, overall=True, scale=1.0),),
        sampling=KLEIN,
    ),
}

"""mPLUG-large by ModelScope, the model that answers DPG-Bench's questions in the reference.

`modelscope` pins old versions of transformers, so it stands in an environment of its own; what scores pictures with it
runs there. It takes one picture and one question at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from asymflow.metrics.arguments import check_images
from asymflow.metrics.weights import MissingWeights, find, repository_of
from asymflow.metrics.yes_no import is_yes

MODEL = "damo/mplug_visual-question-answering_coco_large_en"


class Mplug:
    """Answers one yes/no question a picture; `pipeline` is ModelScope's, which takes {image, question} and returns
    {text}."""

    def __init__(self, pipeline: Any, identity: str):
        self.pipeline = pipeline
        self.protocol: dict[str, Any] = {"metric": "yes_no", "model": identity, "class": "mPLUG by modelscope"}

    @classmethod
    def load(cls, source: str = MODEL, revision: str = "master", device: str = "cpu") -> "Mplug":
        """From a folder, or of ModelScope's hub, whose main branch is `master`; a revision should be named there, since
        the hub does not tell which one it was. `device` is cpu, cuda or cuda:N.

        Raises:
            MissingWeights: modelscope is not installed here, or cannot load the model.
        """
        try:
            from modelscope.pipelines import pipeline
            from modelscope.utils.constant import Tasks
        except ImportError as error:
            raise MissingWeights(
                f"mPLUG needs the package modelscope, in an environment of its own ({error}); a model of transformers "
                "answers such questions here: asymflow.metrics.yes_no"
            ) from error
        if Path(source).exists():
            found = find(source, "mPLUG as ModelScope stores it")
            where, identity = {"model": str(found.path)}, found.identity
        else:
            source, revision = repository_of(source, revision)
            where, identity = {"model": source, "model_revision": revision}, f"modelscope:{source}@{revision}"
        try:
            made = pipeline(Tasks.visual_question_answering, **where, device=device)
        except Exception as error:  # of the hub, the network or the files: modelscope has no common one
            raise MissingWeights(f"{source} cannot be loaded by modelscope, {type(error).__name__}: {error}") from error
        return cls(made, identity)

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[bool]:
        """Of uint8 images (B, 3, H, W), sRGB, and B questions. Raises ValueError for anything else, or for an answer
        that is no text."""
        check_images(images)
        if len(questions) != len(images) or not all(question.strip() for question in questions):
            raise ValueError(f"{len(images)} images need as many questions, none of them empty; got {len(questions)}")
        found = []
        for image, question in zip(images, questions, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            answer = self.pipeline({"image": picture, "question": question})["text"]
            if not isinstance(answer, str):
                raise ValueError(f"the answer to {question!r} is {answer!r}; expected text")
            found.append(is_yes(answer))
        return found

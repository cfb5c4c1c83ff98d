"""mPLUG-large by ModelScope, which answers DPG-Bench's questions in the reference.

`modelscope` pins old versions of transformers, so it needs its own environment; images are scored with it there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from asymflow.metrics.arguments import check_images, to_pil_images
from asymflow.metrics.weights import MissingWeights, find, repository_of
from asymflow.metrics.yes_no import is_yes

MODEL = "damo/mplug_visual-question-answering_coco_large_en"


class Mplug:
    """Answer one yes/no question per image.

    Args:
        pipeline: ModelScope's pipeline, which maps {image, question} to {text}.
        identity: Name of the weights in the protocol.
    """

    def __init__(self, pipeline: Any, identity: str):
        self.pipeline = pipeline
        self.protocol: dict[str, Any] = {"metric": "yes_no", "model": identity, "class": "mPLUG by modelscope"}

    @classmethod
    def load(cls, source: str = MODEL, revision: str = "master", device: str = "cpu") -> "Mplug":
        """Load the model from a folder or ModelScope's hub.

        Args:
            source: Folder, or repository of ModelScope's hub.
            revision: Revision of the repository; give one, since the hub does not return which one was used.
            device: `cpu`, `cuda` or `cuda:N`.

        Returns:
            The model.

        Raises:
            MissingWeights: If modelscope is not installed, or cannot load the model.
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
        """Answer the questions.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            questions: One question per image.

        Returns:
            True for yes, per image.

        Raises:
            ValueError: For other images, another number of questions, or an answer that is not text.
        """
        check_images(images)
        if len(questions) != len(images) or not all(question.strip() for question in questions):
            raise ValueError(f"{len(images)} images need as many questions, none of them empty; got {len(questions)}")
        found = []
        for pil_image, question in zip(to_pil_images(images), questions, strict=True):
            answer = self.pipeline({"image": pil_image, "question": question})["text"]
            if not isinstance(answer, str):
                raise ValueError(f"the answer to {question!r} is {answer!r}; expected text")
            found.append(is_yes(answer))
        return found

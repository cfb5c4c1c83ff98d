from itertools import islice

import pyarrow.parquet as pq
import pytest
import torch
from training_files import files_in

from pipelines.data.datasets import decode_batch
from pipelines.data.embeddings import EncodedText, StoredText, text_length
from pipelines.train.finetune.validation_prompts import Prompts


@pytest.mark.ray
def test_embeddings_of_held_out_captions_are_the_same_from_files_and_from_the_encoder(tiny_workflow, tiny_base):
    curated, encoded = (tiny_workflow[2][name].artifact for name in ("curate", "encode"))
    files = curated.files("held_out", ".parquet")
    prompts = Prompts(files, encoded.files("text/held_out", ".parquet"), count=5)
    captions = (c for file in files for c in pq.read_table(file)["caption"].to_pylist())
    assert prompts.captions() == list(islice(captions, 5))
    on_the_fly = EncodedText(str(tiny_base), "cpu", *text_length(encoded))
    ours, theirs = prompts.embeddings(on_the_fly), prompts.embeddings(StoredText())
    assert len(ours) == 5
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-3)


def test_prompts_by_kind_have_their_reference_images(mixed_files):
    files = [files_in(mixed_files, kind) for kind in ("curated", "text")]
    kinds = Prompts.by_kind(*files, count=8)
    assert [len(prompts.captions()) for prompts in kinds] == [2, 3, 3]
    plain, *edits = (prompts.references() for prompts in kinds)
    assert plain is None
    assert [tuple(references.shape) for references in edits] == [(3, number, 3, 32, 32) for number in (1, 2)]
    rows = pq.read_table(files_in(mixed_files, "curated")[0])["references"].to_pylist()
    assert "+1" in files_in(mixed_files, "curated")[0]
    assert torch.equal(edits[0], torch.stack([decode_batch(row) for row in rows[:3]]))
    assert [len(prompts.captions()) for prompts in Prompts.by_kind(*files, count=2)] == [1, 1]

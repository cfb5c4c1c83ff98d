from itertools import islice

import pyarrow.parquet as pq
import pytest
import torch

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

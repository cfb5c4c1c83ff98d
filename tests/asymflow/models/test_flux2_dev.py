import json

from asymflow.models.flux2_dev import FAMILY, HIDDEN_STATES
from asymflow.models.latent import family_of, published_model


def test_a_folder_of_the_stock_pipeline_is_of_the_family(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2Pipeline"}))
    assert family_of(tmp_path) is FAMILY


def test_the_published_model_has_32_billion_parameters_and_embedded_guidance():
    network = FAMILY.backbone.network(published_model("FLUX.2-dev").config)
    assert round(sum(part.values for part in (*network.linears, *network.vectors)) / 1e9) == 32
    assert [layer.name for layer in network.linears if "guidance_embedder" in layer.name]


def test_the_transformer_reads_as_many_hidden_states_of_mistral_as_an_embedding_has():
    assert published_model("FLUX.2-dev").config["joint_attention_dim"] == len(HIDDEN_STATES) * 5120

import torch

from asymflow.models.text import HIDDEN_STATES, encode_captions
from pipelines.toy.text_encoder import END, PAD, START, new_text_encoder, train_text_encoder, train_tokenizer

CAPTIONS = [f"an emoji of {name} on {color}" for name in ("cat", "dog", "sun") for color in ("red", "blue")]
TOKENIZER = train_tokenizer(CAPTIONS)


def test_any_text_is_tokenized_without_loss():
    for text in ("an emoji of cat on red", "Größe 5 – 猫 🦊", ""):
        assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_words_of_the_captions_are_single_tokens():
    assert len(TOKENIZER("an emoji of cat on red")["input_ids"]) < len(TOKENIZER("qzx jvk")["input_ids"]) * 2


def test_special_tokens_and_the_layout_are_qwen3s():
    text = TOKENIZER.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False)
    assert text == f"{START}user\na cat{END}\n"
    assert (TOKENIZER.pad_token, TOKENIZER.padding_side) == (PAD, "right")
    assert TOKENIZER.convert_tokens_to_ids([PAD, START, END]) == [0, 1, 2]


def test_the_model_has_the_hidden_states_of_the_pipeline():
    model = new_text_encoder(len(TOKENIZER)).eval()
    assert model.config.num_hidden_layers > max(HIDDEN_STATES)
    (embedding,) = encode_captions(model, TOKENIZER, ["a cat"])
    assert embedding.shape[1] == 3 * model.config.hidden_size


def test_training_starts_from_one_seed_and_changes_the_weights(tmp_path):
    plain = new_text_encoder(len(TOKENIZER)).state_dict()
    untrained = train_text_encoder(TOKENIZER, CAPTIONS, tmp_path / "none", 0).state_dict()
    assert all(torch.equal(untrained[name], value) for name, value in plain.items())
    trained = train_text_encoder(TOKENIZER, CAPTIONS, tmp_path / "one", 1).state_dict()
    assert not torch.equal(trained["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])

"""Visual question answering models of transformers' own classes, at tiny size."""

import torch

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "yes", "no", "maybe", "is", "it", "bright", "a", "?")
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
QUESTIONS = ("is it bright?", "bright?", "is it a bright cat, or is it not?", "is it?")


def pictures(count, seed=0, size=40):
    """Noise, dark and bright by turns."""
    noise = torch.randint(0, 80, (count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return (noise + 170 * (torch.arange(count) % 2).view(-1, 1, 1, 1)).to(torch.uint8)


def bert_tokenizer():
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, bos_token="[DEC]")


def write_blip(folder):
    """A tiny BLIP that has learnt to say yes to bright pictures and no to dark ones."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor

    text = {**TOWER, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 32,
            "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "projection_dim": 8,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    processor = BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), bert_tokenizer())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    inputs = processor(images=list(pictures(8)), text=["is it bright?"] * 8, return_tensors="pt")
    labels = torch.tensor([[5, 7, 3], [5, 6, 3]] * 4)
    for _ in range(150):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.mean().backward()
        optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def write_vilt(folder, labels=("no", "yes", "two")):
    """A tiny ViLT with random weights, whose labels "yes" and "no" are as likely as one another over pictures."""
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    torch.manual_seed(0)
    config = ViltConfig(
        **TOWER, image_size=16, patch_size=8, vocab_size=len(WORDS), max_position_embeddings=24, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model = ViltForQuestionAnswering(config).eval()
    images = ViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
    processor = ViltProcessor(images, bert_tokenizer())
    with torch.no_grad():
        logits = model(**processor(images=list(pictures(8)), text=[QUESTIONS[0]] * 8, return_tensors="pt")).logits
        model.classifier[-1].bias -= logits.median(0).values
        model.classifier[-1].bias[2] -= 100
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)

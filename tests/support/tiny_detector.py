"""GenEval's detector of transformers' own class, at tiny size and with random weights."""

import torch


def write_detector(folder, labels=80):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )  # fmt: skip

    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=10,
        num_labels=labels,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(100)  # so that classes differ between queries and pictures
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)

import torch

from pipelines.toy.perceptual import WORDS, train_backbone, words_of


def test_indicators_are_of_the_most_frequent_words():
    found = words_of(["a red cat, on grass", "a cat", "a dog a dog"])
    assert found.shape == (3, 6)
    assert found[:, 0].tolist() == [1, 1, 1]
    assert found[:, 1].tolist() == [1, 1, 0]  # "cat", without its comma
    assert found.sum(1).tolist() == [5, 2, 2]


def test_no_more_words_are_taken_than_the_network_predicts():
    assert words_of([f"word{i}" for i in range(300)]).shape == (300, WORDS)


def test_the_features_are_those_that_lpips_takes(tmp_path):
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    features = train_backbone(images, ["a cat", "a dog", "a cat", "a bus"], tmp_path, 0)
    assert features(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 3, 3)

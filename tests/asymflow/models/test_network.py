import pytest

from asymflow.models.network import Attention, Linear, Network, Vectors, count_flops, lora_layers, tokens_by_stream

IMAGE, TEXT = 5, 3
FIRST = Linear("embed", 7, 11, "image", first=True, trained=True)
INNER = Linear("blocks.0.mlp", 11, 13, "both")
OUTER = Linear("out", 13, 2, "one", trained=True, bias=True)


def test_parameters_of_a_layer_include_its_bias():
    assert (FIRST.values, OUTER.values) == (7 * 11, 13 * 2 + 2)


def test_streams_have_their_tokens():
    assert tokens_by_stream(IMAGE, TEXT) == {"image": 5, "text": 3, "both": 8, "one": 1}


def test_a_forward_pass_is_two_operations_per_weight_and_token():
    found = count_flops(Network((FIRST, INNER, OUTER), ()), IMAGE, TEXT)
    assert found.forward == 2 * (7 * 11 * 5 + 11 * 13 * 8 + 13 * 2 * 1)


def test_attention_is_two_products_of_all_tokens_with_all():
    found = count_flops(Network((), (Attention(6, "both"),)), IMAGE, TEXT)
    assert found == (4 * 6 * 8**2, 2 * 4 * 6 * 8**2, 4 * 6 * 8**2)


@pytest.mark.parametrize(("first", "trained", "passes"), [(0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 1, 1)])
def test_a_backward_pass_has_gradients_of_inputs_and_of_trained_weights(first, trained, passes):
    layer = INNER._replace(first=bool(first), trained=bool(trained))
    found = count_flops(Network((layer,), ()), IMAGE, TEXT)
    assert found.backward == passes * found.forward


@pytest.mark.parametrize("name", ["transformer_blocks.3.ff", "layers.0.x", "noise_refiner.1.w"])
def test_checkpointing_repeats_the_blocks_alone(name):
    found = count_flops(Network((FIRST, INNER._replace(name=name)), ()), IMAGE, TEXT)
    assert found.recomputed == 2 * 11 * 13 * 8


def test_lora_has_two_trained_matrices_for_each_whole_name_that_matches():
    down, up = lora_layers((FIRST, INNER, OUTER), r"blocks\.\d+\.mlp|mbed", rank=2)
    assert (down.name, down.inputs, down.outputs, down.trained) == ("blocks.0.mlp.lora_A", 11, 2, True)
    assert (up.name, up.inputs, up.outputs, up.stream) == ("blocks.0.mlp.lora_B", 2, 13, "both")
    assert not list(lora_layers((INNER,), ".*", rank=0))


def test_networks_are_added_part_by_part():
    one = Network((FIRST,), (Attention(6, "both"),), (Vectors("norm", 3),))
    assert one + one == Network((FIRST,) * 2, (Attention(6, "both"),) * 2, (Vectors("norm", 3),) * 2)

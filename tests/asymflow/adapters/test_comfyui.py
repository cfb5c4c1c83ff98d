import torch

from asymflow.adapters.comfyui import from_comfyui, to_comfyui

TENSORS = {
    "norm_out.linear.weight": torch.arange(8.0).view(4, 2).half(),
    "time_guidance_embed.timestep_embedder.linear_1.lora_A.weight": torch.ones(2, 3).half(),
    "transformer_blocks.0.ff.linear_in.lora_B.weight": torch.randn(4, 2).half(),
    "proj_buffer": torch.eye(12)[:, :4].bfloat16(),
}


def test_comfyui_differs_in_one_name_and_one_order():
    found = to_comfyui(TENSORS)
    assert found["norm_out.linear.weight"].tolist() == [[4, 5], [6, 7], [0, 1], [2, 3]]
    assert "time_text_embed.timestep_embedder.linear_1.lora_A.weight" in found
    assert len(found) == len(TENSORS)
    same = [name for name in TENSORS if name in found and name != "norm_out.linear.weight"]
    assert len(same) == 2
    assert all(found[name] is TENSORS[name] for name in same)
    back = from_comfyui(found)
    assert list(back) == list(TENSORS)
    assert all(torch.equal(back[name], TENSORS[name]) for name in TENSORS)

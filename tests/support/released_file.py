"""What the released adapter's file holds, by the table that describes it."""


def released_shapes():
    """{name: shape} of its 121 tensors."""
    shapes = {
        "x_embedder.weight": (4096, 768), "proj_out.weight": (768, 4096), "norm_out.linear.weight": (8192, 4096),
        "proj_buffer": (768, 128), "scale_buffer": (),
    }  # fmt: skip
    layers = {f"single_transformer_blocks.{i}.attn.to_out": (16384, 4096) for i in range(24)}
    layers["time_guidance_embed.timestep_embedder.linear_1"] = (256, 4096)
    layers["time_guidance_embed.timestep_embedder.linear_2"] = (4096, 4096)
    for i in range(8):
        for ff in ("ff", "ff_context"):
            layers[f"transformer_blocks.{i}.{ff}.linear_in"] = (4096, 24576)
            layers[f"transformer_blocks.{i}.{ff}.linear_out"] = (12288, 4096)
    for name, (inputs, outputs) in layers.items():
        shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"] = (256, inputs), (outputs, 256)
    return shapes

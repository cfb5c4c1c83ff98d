"""A transformer of FLUX.2 as the GGUF file of a base, written by the package gguf under the published names."""

from pathlib import Path

import gguf

from asymflow.adapters.original_names import to_original

TYPE = gguf.GGMLQuantizationType.Q8_0


def write_base(transformer, folder: Path) -> Path:
    """Write config.json and base.gguf, with every matrix quantized, also the first and last layers."""
    transformer.save_config(folder)
    path = folder / "base.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in to_original(transformer.state_dict()).items():
        values = tensor.detach().float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, TYPE), raw_dtype=TYPE)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(transformer):
    """Round the same weights in place to the values that the file stores."""
    for parameter in transformer.parameters():
        if parameter.ndim == 2 and parameter.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(parameter.detach().float().numpy(), TYPE)
            parameter.data.copy_(parameter.new_tensor(gguf.quants.dequantize(packed, TYPE)))
    return transformer

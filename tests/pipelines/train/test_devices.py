import pytest
import torch

from pipelines.train import devices
from pipelines.train.config import Resources
from pipelines.train.devices import Device, device_of, peak_tflops, precision, precision_name


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A100X", None),
        ("Quadro P400", None),
    ],
)
def test_peaks_of_common_gpus(name, tflops):
    assert peak_tflops(name) == tflops


@pytest.mark.parametrize(
    ("resources", "name"),
    [
        ({}, "float32"),
        ({"use_gpu": True}, "bfloat16"),
        ({"use_gpu": True, "precision": "float32"}, "float32"),
        ({"precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_the_precision_is_given_or_the_devices(resources, name):
    assert precision_name(Resources(**resources)) == name
    assert precision(Resources(**resources)) == getattr(torch, name)


def test_without_a_gpu_a_plan_assumes_one_or_the_given_peak(monkeypatch):
    monkeypatch.setattr(devices, "_DRIVERS", ())
    assert device_of(Resources()) == Device("this CPU", None)
    assert device_of(Resources(use_gpu=True)) == devices.PLANNED_FOR
    assert device_of(Resources(use_gpu=True, peak_tflops=50)).tflops == 50

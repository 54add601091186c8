"""The GPU and Triton."""

from importlib import import_module
from importlib.util import find_spec

from crossformer_mm.doctor.findings import Finding, attempt

DRIVER = "look whether nvidia-smi works; CUDA_VISIBLE_DEVICES= trains on the CPU"
TRITON = "pip install --force-reinstall --no-deps triton, in the version that torch asks for"


def find_gpu() -> Finding:
    """Name the GPUs, with memory and compute capability."""
    return attempt("GPU", _describe_gpus, DRIVER)


def _describe_gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        return f"none (torch is built for CUDA {built}): training runs on the CPU in float32"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        capability = f"{properties.major}.{properties.minor}"
        names.append(f"{properties.name} ({memory:.0f} GiB, compute capability {capability})")
    return ", ".join(names)


def find_triton() -> Finding:
    """The version of Triton. A broken one breaks torch's own parts too, with and without a GPU."""
    return attempt("Triton", _load_triton, TRITON)


def _load_triton() -> str:
    if find_spec("triton") is None:
        return "not installed"
    return import_module("triton").__version__

"""The GPU, Triton, and which path the attention takes here."""

from importlib import import_module
from importlib.util import find_spec

from crossformer_mm.doctor.findings import Finding, attempt

DRIVER = "look whether nvidia-smi works; CUDA_VISIBLE_DEVICES= trains on the CPU"
TRITON = "pip install --force-reinstall --no-deps triton, in the version that torch asks for"
KERNEL = "the fused kernel needs Triton, torch 2.4 and compute capability 8.0 (A100)"


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


def find_attention() -> Finding:
    """Name the path that the attention of the backbone takes on this machine."""
    found = attempt("attention", _describe_paths, "crossformer_mm is incomplete: install it again")
    if found.text.endswith("cuda") and not found.text.startswith("fused on"):
        return found._replace(advice=KERNEL)
    return found


def _describe_paths() -> str:
    import torch

    from crossformer_mm.models import GroupedAttention

    layer = GroupedAttention(96, 3)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = {layer.path_for(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return f"{' or '.join(sorted(paths))} on {device.type}"

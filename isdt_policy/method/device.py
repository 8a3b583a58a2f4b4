"""Where tensors live: one reading of `device=` for training, evaluation and deployment."""

from __future__ import annotations

import os

import torch

from isdt_policy.shared.errors import InputError, nearest

_KINDS = ("auto", "cpu", "cuda", "mps")


def find_device(name: str, option: str = "device") -> torch.device:
    """The device that a user names.

    Args:
        name: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
        option: what it is called where it was given, for the message.

    Raises:
        InputError: no such kind of device, or none of it on this machine.
    """
    kind, _, number = name.partition(":")
    if kind not in _KINDS or (number and not number.isdigit()):
        raise InputError(f"{option}='{name}' is not one of {', '.join(_KINDS)}, cuda:0, ....{nearest(name, _KINDS)}")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(
            f"{option}='{name}' cannot be used here ({why}). Give {option}=cpu, or install a PyTorch for your GPU."
        ) from error
    return device


def device_to_act(name: str) -> torch.device:
    """The device that a user names for a policy that acts; a GPU then computes in full float32, convolutions too.

    Raises:
        InputError: see `find_device`.
    """
    device = find_device(name)
    set_arithmetic(device, tf32=False, deterministic=False)
    return device


def set_arithmetic(device: torch.device, tf32: bool, deterministic: bool) -> None:
    """Choose how a GPU computes, for this process. The CPU computes as it always does.

    Args:
        device: of the computation.
        tf32: round factors of float32 products to 10 bits of mantissa: several times as fast.
        deterministic: only algorithms that give the same bits every time; an operation that has none raises.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False  # times algorithms, and takes another one every time
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed


def describe_gpu(device: torch.device) -> dict[str, object]:
    """What decides about speed and last bits on a GPU, for the record; empty on another device."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name, "gpu_memory_mb": properties.total_memory // 2**20, "cuda": torch.version.cuda,
        "cuda_of_the_driver": getattr(torch._C, "_cuda_getDriverVersion", int)(), "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32, "deterministic": torch.are_deterministic_algorithms_enabled(),
    }  # fmt: skip


def sent(numbers: torch.Tensor, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers of the CPU on the device of `like`, in its type or another. A GPU copies them by itself: nothing waits for it."""
    if like.device.type == "cuda" and numbers.device.type == "cpu":
        numbers = numbers.pin_memory()
    return numbers.to(like.device, dtype or like.dtype, non_blocking=True)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware. Elsewhere they are emulated, forty times as slow as float32 on AVX2."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)

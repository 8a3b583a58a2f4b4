"""Where tensors live: one reading of `device=` for training, evaluation and deployment."""

from __future__ import annotations

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


def sent(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers of the CPU on the device and in the type of `like`. A GPU copies them by itself: nothing waits for it."""
    if like.device.type == "cuda" and numbers.device.type == "cpu":
        numbers = numbers.pin_memory()
    return numbers.to(like, non_blocking=True)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware. Elsewhere they are emulated, forty times as slow as float32 on AVX2."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)

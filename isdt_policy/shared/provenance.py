"""Which version of this software is running, and on what."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Extensions with which libraries and compilers choose other kernels, whose sums are rounded in another order.
_VECTORS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "asimd", "sve", "sve2", "bf16",
)  # fmt: skip


def processor() -> str:
    """Name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def decides_bits() -> dict[str, object]:
    """What decides the last bits of a result, beside the versions of packages: processor, instructions, threads, GPU."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    found: dict[str, object] = {
        "processor": processor(),
        "instructions": " ".join(name for name in _VECTORS if name in flags),
    }
    torch = sys.modules.get("torch")  # not imported on purpose: a scripted policy runs without it
    if torch is not None:
        found["torch_instructions"] = torch.backends.cpu.get_cpu_capability()
        found["torch_threads"] = torch.get_num_threads()
        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def differences(before: Mapping[str, object]) -> list[str]:
    """In what this machine differs from the one of an earlier result; empty if that is not known.

    Args:
        before: what `decides_bits` said there.
    """
    here = decides_bits()
    return [
        f"{name.replace('_', ' ')} was '{before[name]}', is '{value}' here"
        for name, value in here.items()
        if before.get(name, value) != value
    ]


def _cpuinfo(name: str) -> str:
    """A line of the first processor in /proc/cpuinfo; "" where there is none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def commit() -> str | None:
    """The git commit of the checkout this package runs from, with "+changes" if files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        head = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if dirty else "")

"""What processor this is: its name for people, and what it can do that decides which backend is fastest."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def cpu_fields(path: Path = _CPUINFO) -> dict[str, str]:
    """The first processor's entry in Linux's own list, by field; empty where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_name() -> str:
    """Its model where the system tells it, else the machine's kind."""
    return cpu_fields().get("model name") or platform.machine() or "cpu"


def has_bfloat16(fields: dict[str, str] | None = None) -> bool:
    """Whether matrix products in bfloat16 run in hardware: AMX tiles, AVX-512 BF16, or Arm's own.

    Without it bfloat16 is emulated, and slower than float32.
    """
    fields = cpu_fields() if fields is None else fields
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


_VECTOR_FLAGS = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "fp16", "i8mm", "neon", "sse", "ssse", "sve")


def vector_features(fields: dict[str, str] | None = None) -> tuple[str, ...]:
    """The vector instructions it has, sorted: libraries choose their code by them, and with it the order of a sum."""
    fields = cpu_fields() if fields is None else fields
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return tuple(sorted(flag for flag in flags if flag.startswith(_VECTOR_FLAGS)))

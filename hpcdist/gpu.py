"""GPU utilisation and memory through NVML, where there is an NVIDIA driver."""

from pathlib import Path

import pynvml

NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def count_gpus(visible: str | None) -> int:
    """Count this machine's GPUs that CUDA_VISIBLE_DEVICES (`visible`; None is unset) lets be seen; 0 without NVML."""
    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0
    return count if visible is None else min(count, len([name for name in visible.split(",") if name.strip()]))


def read_driver() -> tuple[str, str] | None:
    """Return the NVIDIA driver's version, and the newest CUDA that it runs (`13.0`); None without a driver."""
    try:
        pynvml.nvmlInit()
        driver, cuda = str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    # 1000 x major + 10 x minor (NVML, nvmlSystemGetCudaDriverVersion).
    return driver, f"{cuda // 1000}.{cuda % 1000 // 10}"


class GpuMeter:
    """Samples one GPU.

    Attributes:
        memory_peak_bytes: Largest memory in use seen so far, by all processes on the GPU.
        memory_total_bytes: What there is of it; None before the GPU told.
    """

    def __init__(self, handle: object) -> None:
        self._handle = handle
        self._busy_percent: list[int] = []
        self.memory_peak_bytes = 0
        self.memory_total_bytes: int | None = None

    @classmethod
    def open(cls, visible: str | None, local_rank: int) -> "GpuMeter | None":
        """Return the meter of a rank's GPU; None when there is none.

        Args:
            visible: The value of CUDA_VISIBLE_DEVICES: indices or UUIDs; None is unset.
            local_rank: The rank's place among its node's GPUs.
        """
        if not NVIDIA_DRIVER.exists():
            return None
        names = [str(local_rank)] * (local_rank + 1) if visible is None else visible.split(",")
        if local_rank >= len(names) or not names[local_rank].strip():
            return None
        name = names[local_rank].strip()
        try:
            pynvml.nvmlInit()
            if name.isdigit():
                return cls(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
            return cls(pynvml.nvmlDeviceGetHandleByUUID(name))
        except pynvml.NVMLError:
            return None

    def sample(self) -> tuple[float | None, float | None]:
        """Take one sample: utilisation, a fraction, and memory in use, bytes; None of what the GPU does not tell."""
        busy: float | None = None
        try:
            percent = int(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
            self._busy_percent.append(percent)
            busy = percent / 100
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        except pynvml.NVMLError:
            return busy, None
        self.memory_total_bytes = int(memory.total)
        self.memory_peak_bytes = max(self.memory_peak_bytes, int(memory.used))
        return busy, float(memory.used)

    def utilization(self) -> float | None:
        """Return the mean utilisation over the samples, a fraction; None before the first."""
        return sum(self._busy_percent) / len(self._busy_percent) / 100 if self._busy_percent else None

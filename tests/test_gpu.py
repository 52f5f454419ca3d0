"""The GPU meter against a stand-in for NVML: there is no GPU where these tests run."""

from types import SimpleNamespace

import pytest

from hpcdist import gpu


class StandInNvml:
    """Two GPUs, 60 and 80 GiB in use, utilisation from a script."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, busy):
        self.busy = iter(busy)

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlShutdown(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "570.133.20"

    def nvmlSystemGetCudaDriverVersion(self):  # noqa: N802
        return 12080  # nvml.h: CUDA 12.8

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return f"index {index}"

    def nvmlDeviceGetHandleByUUID(self, name):  # noqa: N802
        return f"uuid {name}"

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        busy = next(self.busy)
        if busy is None:
            raise self.NVMLError
        return SimpleNamespace(gpu=busy)

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=60 * 1024**3, total=80 * 1024**3)


@pytest.fixture
def nvml(monkeypatch, tmp_path):
    def install(*busy):
        monkeypatch.setattr(gpu, "pynvml", StandInNvml(busy))
        monkeypatch.setattr(gpu, "NVIDIA_DRIVER", tmp_path)

    return install


def test_utilisation_is_the_mean_of_the_samples_and_memory_their_peak(nvml):
    nvml(20, 60, 100)
    meter = gpu.GpuMeter.open(None, 0)
    for _ in range(3):
        meter.sample()
    assert meter.utilization() == pytest.approx(0.6)
    assert meter.memory_peak_bytes == 60 * 1024**3


def test_a_sample_that_fails_is_skipped_and_none_taken_is_unknown(nvml):
    nvml(None, 50)
    meter = gpu.GpuMeter.open(None, 0)
    meter.sample()
    assert meter.utilization() is None
    meter.sample()
    assert meter.utilization() == 0.5


@pytest.mark.parametrize(
    ("visible", "local_rank", "handle"),
    [(None, 1, "index 1"), ("1,0", 0, "index 1"), ("GPU-aa,GPU-bb", 1, "uuid GPU-bb")],
)
def test_the_meter_is_that_of_the_rank_s_own_gpu(nvml, visible, local_rank, handle):
    nvml()
    assert gpu.GpuMeter.open(visible, local_rank)._handle == handle


@pytest.mark.parametrize("visible", ["", "0"])
def test_a_rank_without_a_gpu_has_no_meter(nvml, visible):
    nvml()
    assert gpu.GpuMeter.open(visible, 1) is None


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("", 0), ("1", 1), ("0,1,2", 2)])
def test_gpus_are_counted_as_cuda_shows_them(nvml, visible, count):
    nvml()
    assert gpu.count_gpus(visible) == count


def test_without_nvml_there_are_none():
    assert gpu.GpuMeter.open(None, 0) is None
    assert gpu.count_gpus(None) == 0


def test_the_driver_says_which_cuda_it_runs(nvml):
    nvml()
    assert gpu.read_driver() == ("570.133.20", "12.8")


def test_without_a_driver_there_is_none(monkeypatch):
    monkeypatch.setattr(gpu.pynvml, "nvmlInit", _refuse)
    assert gpu.read_driver() is None


def _refuse():
    raise gpu.pynvml.NVMLError(gpu.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

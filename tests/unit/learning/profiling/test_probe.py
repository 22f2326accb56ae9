"""The probe: bounded, plausible, and aware of the limits that a container or a quota sets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from p2ptrain.learning.profiling import device as p
from p2ptrain.planning.devices.profiles import read_profile


def cgroup(root: Path, membership: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CORES = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {}, CORES),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "max 100000"}, CORES),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/../..\n", {"cpu.max": "30000 100000"}, 0.3),
        ("0::/on/the/host\n", {"cpu.max": "30000 100000"}, 0.3),
        ("2:cpu,cpuacct:/c\n", {"cpu,cpuacct/c/cpu.cfs_quota_us": "-1", "cpu/c/cpu.cfs_period_us": "100000"}, CORES),
        ("2:cpu,cpuacct:/c\n", {"cpu/c/cpu.cfs_quota_us": "20000", "cpu/c/cpu.cfs_period_us": "100000"}, 0.2),
        ("2:cpu:/c\n0::/x\n", {"unified/x/cpu.max": "40000 100000"}, 0.4),
        ("nonsense", {}, CORES),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, CORES),
    ],
)
def test_cores_respect_affinity_and_quota(tmp_path: Path, membership: str, files: dict[str, str], cores: float) -> None:
    assert p.available_cores(cgroup(tmp_path, membership, files)) == pytest.approx(cores)


@pytest.mark.parametrize(
    ("membership", "files", "free"),
    [
        ("0::/a/b\n", {"a/memory.max": "2000000", "a/memory.current": "500000"}, 1_500_000),
        (
            "0::/a\n",
            {"a/memory.max": "900", "a/memory.current": "500", "a/memory.stat": "anon 1\ninactive_file 200"},
            600,
        ),
        ("0::/a\n", {"a/memory.max": "900", "a/memory.current": "1500"}, 0),
        ("4:memory:/c\n", {"memory/c/memory.limit_in_bytes": "900", "memory/c/memory.usage_in_bytes": "400"}, 500),
    ],
)
def test_memory_respects_cgroup_limits(tmp_path: Path, membership: str, files: dict[str, str], free: int) -> None:
    assert p.available_memory(root=cgroup(tmp_path, membership, files)) == free


def test_memory_without_limits_is_what_is_free(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "0::/a\n", {"a/memory.max": "max", "a/memory.current": "500"})
    assert p.available_memory(root=root) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_disk_speed_leaves_nothing_behind_and_is_bounded(tmp_path: Path) -> None:
    began = time.perf_counter()
    assert p.disk_write_speed(tmp_path, 0.1) > 0
    assert time.perf_counter() - began < 5
    assert list(tmp_path.iterdir()) == []
    assert p.disk_write_speed(tmp_path / "nowhere", 0.1) == 0


def test_steps_are_counted_as_torch_counts_them() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    with FlopCounterMode(display=False) as counter:
        assert p.training_flops_per_s(1, 0.0) > 1e6
    assert counter.get_total_flops() == 2 * p.CPU_BATCH * p.STEP_FLOPS_PER_SAMPLE  # the warming step and one more
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_probe_is_bounded_and_its_profile_can_be_read(tmp_path: Path) -> None:
    result = p.probe(tmp_path)
    assert result.seconds < 20  # five on an idle machine
    assert 1e7 < result.flops_per_s_one_core <= result.flops_per_s or result.accelerator
    profile = p.profile_of(result, 'my "laptop"', "laptop")
    path = tmp_path / "mine.toml"
    path.write_text(profile.to_toml(), encoding="utf-8")
    assert read_profile(path) == profile
    assert profile.flops_per_s.basis == "measured" and "torch" in profile.flops_per_s.source
    assert profile.link_bytes_per_s.basis == "estimated"


def test_a_quick_probe_is_quick() -> None:
    before = time.thread_time()
    result = p.quick_probe()
    assert result.flops_per_s > 1e7 and result.memory_bytes > 0 and result.cores > 0
    assert time.thread_time() - before < 5  # half a second of computing, however long a busy machine takes for it


def test_importing_the_probe_does_not_import_torch() -> None:
    code = "import sys, p2ptrain.learning.profiling.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], check=False).returncode == 0

"""Which core each device computes on, and the cgroups of all devices of a lab.

The kernel hands a cgroup's quota out in slices of 5 ms, to each core apart. A device of two processes, a node that does
little and a trainer that does much, on two cores leaves part of the little one's slice unused in each of its periods,
which are not much longer (see "slice" in the kernel's sched-bwc). In three runs trainers' passes took 1.3 to 1.7 times
as long as measured alone, on one core 1.1 to 1.3 times. So a device that computes with one thread stays on one core,
as many of them as fit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lab.quota import Controllers, DeviceGroup
from lab.spec import Device
from p2ptrain.learning.profiling.device import available_cores


def placed(devices: Sequence[Device], cpus: Sequence[int], num_cores: float) -> dict[str, tuple[int, ...]]:
    """A core for each device of one thread, the largest first, where there is most room; none where none has enough."""
    room = dict.fromkeys(cpus, 1.0)
    places: dict[str, tuple[int, ...]] = {device.name: () for device in devices}
    for device in sorted(devices, key=lambda each: (-each.share, each.name)):
        cpu = max(room, key=lambda each: (room[each], -each))
        if device.num_threads(num_cores) == 1 and device.share <= room[cpu] + 1e-9:
            places[device.name] = (cpu,)
            room[cpu] -= device.share
    return places


@contextmanager
def device_groups(devices: Sequence[Device], controllers: Controllers) -> Iterator[Mapping[str, DeviceGroup]]:
    """By device; gone afterwards. Raises ``UserError``."""
    places = placed(devices, sorted(os.sched_getaffinity(0)), available_cores())
    with contextlib.ExitStack() as stack:
        groups: dict[str, DeviceGroup] = {}
        for device in devices:
            cpus = places[device.name]
            groups[device.name] = DeviceGroup(controllers, device.name, device.share, device.memory_mb, cpus)
            stack.callback(groups[device.name].remove)
        yield groups

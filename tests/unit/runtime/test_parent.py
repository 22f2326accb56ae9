"""A process that is of use to its parent alone does not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from p2ptrain.runtime.parent import own_child

CHILD = (
    "import time; from p2ptrain.runtime.parent import die_with_parent; die_with_parent(); print('up'); time.sleep(600)"
)
PARENT = f"""
import os, subprocess, sys, time
from p2ptrain.runtime.parent import own_child
subprocess.Popen([sys.executable, "-u", "-c", {CHILD!r}], env=os.environ | own_child())
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux")
def test_it_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == "", "the last that holds this pipe is gone, too"


def test_it_does_not_begin_where_its_parent_is_gone_already() -> None:
    environment = os.environ | {name: "1" for name in own_child()}
    ended = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "gone before it began" in ended.stderr

"""A short part of the experiments, for CI: see README.md. Their limits are those of a machine that is busy."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netlab.__main__ import EXPERIMENTS, PROGRAMS, parse
from tests.netlab.lab import ROOT, Lab, unable, until
from tests.netlab.verdict import attempt

pytestmark = [pytest.mark.networks, pytest.mark.timeout(240)]

SLACK = 2.0
SHORT = [
    "lan --peers 4 --seconds 4",
    "nat --pairs public+public --sets stun-silent stun-unresolved",
    "nat --pairs cone+cone --sets stun",
    "nat --pairs symmetric+symmetric --sets both",
    "addresses thirty-gateway name-server-silent",
    "links single --sides mesh --conditions 1mbit",
    "changes roam",
]


def chosen():
    for line in SHORT:
        name, *arguments = line.split()
        for title, case in EXPERIMENTS[name].cases(parse([name, *arguments])).items():
            yield pytest.param(name, title, case, id=title)


def skip_unless_able(*programs):
    why = unable(*programs)
    if why is not None:
        pytest.skip(why)


@pytest.mark.parametrize(("name", "title", "case"), list(chosen()))
def test_what_is_due_comes(name, title, case, tmp_path):
    skip_unless_able(*PROGRAMS.get(name, []))
    report = attempt(title, case, logs=str(tmp_path), slack=SLACK)
    assert not report.failed, json.dumps(report.as_json())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_lab_that_is_ended_leaves_nothing(number, tmp_path):
    skip_unless_able()

    def namespaces():
        return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout

    def processes():
        """Those whose command line has the folder of the lab, or its namespaces: none once it has ended."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marker in path.read_bytes():
                    found.append(path.parent.name)
            except OSError:  # it has just ended
                continue
        return found

    marker = f"NETLAB_LOGS={tmp_path}".encode()
    lab = subprocess.Popen(
        [sys.executable, "-m", "tests.netlab", "lan", "--peers", "3", "--seconds", "60"],
        cwd=ROOT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NETLAB_LOGS": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert until(lambda: any(b'"PeerConnected"' in path.read_bytes() for path in tmp_path.glob("*/p1.out")), 60)
        assert f"netlab{lab.pid}-" in namespaces()
        assert len(processes()) >= 5
    finally:
        lab.send_signal(number)
        lab.wait(30)
    assert until(lambda: not processes(), 10)
    if number == signal.SIGKILL:
        with Lab("after", logs=tmp_path):
            pass
    assert f"netlab{lab.pid}-" not in namespaces()

"""Every example runs as it is and prints what it should."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "hello.py": ["alice got {'text': 'hello'}", "Delivered(reached=1", "bob got {'text': 'hello yourself'}"],
    "moderated_room.py": ["ann reads: BUY NOW\nann has blocked 1\nann reads: it is quiet here\n"],
    "shared_counter.py": ["peer 1 counts 6", "peer 2 counts 6", "peer 3 counts 6"],
    "remote_calls.py": ["answer: HOW ARE YOU?"],
}


def test_every_example_is_tested():
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.webrtc
@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_runs(name):
    result = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=40, check=False)
    assert result.returncode == 0, result.stderr
    for line in EXPECTED[name]:
        assert line in result.stdout

"""`p2pmesh demo`: what it makes of what the peers report, and whole demos of real processes over WebRTC."""

import io
import json
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from rich.console import Console

from p2pmesh.cli import main
from p2pmesh.cli.demo.protocol import (
    ORDERS,
    REPORTS,
    Cut,
    Heal,
    Join,
    Links,
    Measured,
    Progress,
    Severed,
    Stop,
    Talk,
    encode,
)
from p2pmesh.cli.demo.report import Peer, Plan, Stage, all_arrived, percentile
from p2pmesh.cli.demo.view import headline, print_summary, summary_lines
from p2pmesh.cli.demo.worker import seeded
from p2pmesh.server.app import open_signaling_server

IDS = ["a" * 40, "b" * 40, "c" * 40]


def stage_of(*links, messages=1, count=3, kill_server=False, partition=None):
    """A stage on which these pairs of peers say that they are linked."""
    plan = Plan(count, messages, 3, 100, 20.0, 60.0, None, kill_server, partition)
    peers = [Peer(n + 1, peer_id=IDS[n], ready=True) for n in range(count)]
    for a, b in links:
        peers[a].links += (IDS[b],)
    return Stage(plan, peers)


def perfect_stage(**options):
    stage = stage_of((0, 1), (1, 0), (1, 2), (2, 1), **options)
    stage.connected_s = 1.0
    for peer in stage.peers:
        peer.progress = Progress(sent=1, reached=[2], delivered=2, direct_done=2, direct_ok=2, direct_received=2)
        peer.measured = Measured([1.0, 2.0], offers_mesh=2, offers_service=1)
    return stage


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_link_counts_once_both_ends_have_it():
    assert stage_of((0, 1)).links == []
    assert stage_of((0, 1), (1, 0)).links == [(IDS[0], IDS[1])]


def test_connected_is_when_each_peer_reaches_each_other_one():
    assert not stage_of((0, 1), (1, 0)).is_connected(3)
    assert stage_of((0, 1), (1, 0), (1, 2), (2, 1)).is_connected(3)


def test_a_mesh_whose_peers_have_not_all_joined_is_not_connected():
    stage = stage_of((0, 1), (1, 0), (1, 2), (2, 1))
    stage.peers[0].peer_id = None
    assert not stage.is_connected(3)
    assert stage.is_connected(2)


def test_the_ring_has_a_gap_where_a_peer_lacks_the_next_one():
    assert stage_of((0, 1), (1, 0)).ring_gaps == 2
    assert stage_of((0, 1), (1, 0), (1, 2), (2, 1)).ring_gaps == 1
    assert stage_of((0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2)).ring_gaps == 0
    assert stage_of((0, 1), (1, 0), count=2).ring_gaps == 0


def test_the_summary_counts_everything():
    assert perfect_stage().summary() == {
        "peers": 3,
        "links": 2,
        "connected_s": 1.0,
        "broadcasts": 3,
        "expected": 6,
        "delivered": 6,
        "duplicates": 0,
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "direct_total": 6,
        "direct_ok": 6,
        "direct_delivered": 6,
        "receipts": {"delivered": 3, "failed": 0},
        "offers": {"mesh": 6, "service": 3},
        "newcomer": None,
        "partition": None,
        "errors": [],
    }


def test_all_arrived_when_nothing_is_missing():
    stage = perfect_stage()
    assert stage.all_arrived
    assert all_arrived(stage.summary())


@pytest.mark.parametrize(
    "change",
    [
        {"delivered": 1},
        {"duplicates": 1},
        {"direct_received": 0},
        {"direct_ok": 1},
        {"reached": [1]},
        {"reached": [], "lost": 1},
        {"sent": 0, "reached": []},
    ],
)
def test_any_single_loss_is_a_failure(change):
    stage = perfect_stage()
    for name, value in change.items():
        setattr(stage.peers[0].progress, name, value)
    assert not all_arrived(stage.summary())


def test_a_newcomer_has_to_have_a_link_that_no_server_helped_with():
    stage = perfect_stage(kill_server=True)
    stage.newcomer_s = 0.25
    stage.door = IDS[0]
    assert stage.newcomer_links == [IDS[1]]
    assert stage.summary()["newcomer"] == {"peer": 3, "linked_s": 0.25, "links_through_mesh": 1}
    assert all_arrived(stage.summary())
    assert "1 links through the mesh" in "\n".join(summary_lines(stage.summary()))
    stage.door = IDS[1]
    assert not all_arrived(stage.summary())


def healed_stage():
    """A partition that is over: everything has arrived, and some of it after its end."""
    stage = perfect_stage(partition=12.0)
    stage.islands_seen, stage.healed_s, stage.caught_up_s = 2, 0.75, 1.5
    for peer in stage.peers:
        peer.progress.late = 1
    return stage


def test_a_partition_is_over_when_everybody_has_what_was_sent_in_it():
    stage = healed_stage()
    partition = stage.summary()["partition"]
    assert partition.pop("peers")[2] == {"peer": 3, "half": 2, "expected": 2, "delivered": 2, "after_heal": 1}
    assert partition == {"seconds": 12.0, "islands": 2, "healed_s": 0.75, "caught_up_s": 1.5, "leaked": 0}
    assert all_arrived(stage.summary())
    text = "\n".join(summary_lines(stage.summary()))
    assert "2 islands after 12 s, one again 0.8 s after its end, everything arrived within 1.5 s" in text
    assert "peer 3 (half 2) has 2 of 2, 1 of them since the end" in text


@pytest.mark.parametrize("change", [{"islands_seen": 1}, {"islands_seen": None}, {"caught_up_s": None}])
def test_a_partition_that_was_none_or_is_not_over_is_a_failure(change):
    stage = healed_stage()
    for name, value in change.items():
        setattr(stage, name, value)
    assert not all_arrived(stage.summary())


def test_a_partition_through_which_something_came_is_a_failure():
    stage = healed_stage()
    stage.peers[1].progress.leaked = 1
    assert not all_arrived(stage.summary())
    assert "1 deliveries came through it" in "\n".join(summary_lines(stage.summary()))


def test_each_half_of_an_odd_number_of_peers_is_more_than_one():
    plan = stage_of(count=3, partition=12.0).plan
    assert [plan.half_of(number) for number in (1, 2, 3)] == [1, 1, 2]


def test_receipts_are_complete_when_each_counts_all_others():
    stage = perfect_stage()
    assert stage.all_counted
    stage.peers[0].progress.reached = [1]
    assert not stage.all_counted
    stage.peers[0].progress.reached = []
    assert not stage.all_counted


def test_a_demo_of_direct_messages_alone_waits_for_them():
    stage = perfect_stage(messages=0)
    for peer in stage.peers:
        peer.progress = Progress()
    assert not stage.all_arrived
    for peer in stage.peers:
        peer.progress = Progress(direct_done=2, direct_ok=2, direct_received=2)
    assert stage.all_arrived
    assert all_arrived(stage.summary())


def test_an_error_is_a_failure_even_if_all_arrived():
    stage = perfect_stage()
    stage.errors.append("peer 1: something")
    assert not all_arrived(stage.summary())


def test_a_demo_that_never_connected_has_a_summary_too():
    summary = Stage(Plan(2, 1, 3, 100, 20.0, 60.0, None), [Peer(1), Peer(2)]).summary()
    assert (summary["connected_s"], summary["links"], summary["latency_ms"]) == (None, 0, {"p50": None, "p99": None})
    assert not all_arrived(summary)
    assert "never connected" in summary_lines(summary)[0]


@given(st.lists(st.floats(0, 1000), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_covers_the_share(values, percent):
    value = percentile(sorted(values), percent)
    assert value in values
    assert sum(v <= value for v in values) * 100 >= percent * len(values)
    assert sum(v < value for v in values) * 100 < percent * len(values)


def test_the_view_tells_where_the_demo_is():
    stage = stage_of((0, 1), (1, 0))
    assert headline(stage) == "connecting: 3 of 3 joined, 1 links"
    stage.peers[2].ready = False
    assert headline(stage) == "starting: 2 of 3 processes ready"
    assert "server is killed" in headline(perfect_stage(kill_server=True))
    assert headline(perfect_stage()) == "connected in 1.00 s by 2 links: 100% delivered"
    stage = perfect_stage(partition=12.0)
    stage.peers[0].is_severed = True
    assert headline(stage) == "connected in 1.00 s; parted for 12 s: 1 islands, 100% delivered"


def test_the_summary_for_people_is_printed_as_it_is():
    console = Console(record=True, width=40, file=io.StringIO())
    summary = perfect_stage().summary() | {"errors": ["peer 1: [bold]not markup[/bold] " + "x" * 80]}
    print_summary(summary, console)
    assert console.export_text().splitlines() == summary_lines(summary)


@pytest.mark.parametrize(
    "order",
    [
        Join(("ws://x",), 5, 3, 20, 100, None, partition=True),
        Talk(20, 20.0, IDS, 60.0),
        Cut(IDS, server=True),
        Heal(),
        Stop(),
    ],
)
def test_orders_survive_the_way(order):
    assert ORDERS.decode(encode(order)) == order


@pytest.mark.parametrize("report", [Links(IDS), Severed(), Progress(sent=3, reached=[1, 2]), Measured([1.5])])
def test_reports_survive_the_way(report):
    assert REPORTS.decode(encode(report)) == report


def test_the_same_seed_gives_the_same_peer():
    (first, rng), (second, same) = (seeded("x/1") for _ in range(2))
    assert first.peer_id == second.peer_id
    assert rng.random() == same.random()
    assert seeded("x/2")[0].peer_id != first.peer_id
    assert seeded(None) == (None, None)


def test_the_picture_shows_each_peer_by_its_number_and_how_many_links_there_are(tmp_path):
    from p2pmesh.cli.demo.plot import draw

    path = tmp_path / "overlay.svg"
    with rc_context({"svg.fonttype": "none"}):
        draw(perfect_stage(), path)
    text = path.read_text()
    assert "2 links along the ring, 0 across it, 1 island" in text
    assert all(f">{number}<" in text for number in (1, 2, 3))


@pytest.mark.parametrize("args", [["--peers", "3"], ["--kill-server", "--peers", "6"]])
def test_what_can_not_be_parted_is_not_begun(args):
    result = CliRunner().invoke(main, ["demo", "--partition", *args])
    assert result.exit_code == 2
    assert "--partition needs" in result.stderr


# --- whole demos ------------------------------------------------------------------------------------------------------


PATIENCE = 120
"""Seconds, on a machine that is busy with much else; a demo takes some seconds for each two of its peers."""


def processes(test):
    """Marks a test that starts real ones."""
    return pytest.mark.webrtc(pytest.mark.timeout(2 * PATIENCE)(test))


def demo(*args):
    command = [sys.executable, "-m", "p2pmesh", "demo", "--json", "--timeout", str(PATIENCE), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(pid):
    """Of all threads: Trio starts processes in one of its own."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for thread in threads for child in thread.read_text().split())


def wait_for_line(process, is_it):
    """Read what the demo says, up to a line like this."""
    while not is_it(line := process.stderr.readline()):
        assert line, "the demo has ended early"


def connected_children(process):
    """The peers' process ids, once they are one mesh."""
    wait_for_line(process, lambda line: line.startswith("connected"))
    return children_of(process.pid)


def is_peer(pid):
    """Whether it runs already: a child stopped before that would stop its parent, too, which waits for it to begin."""
    return b"demo-peer" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for_end(pid):
    """Wait until a process has ended, a child of ours or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], PATIENCE)[0], "it does not end"
    finally:
        os.close(handle)


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


@processes
def test_everything_arrives_and_the_report_says_so():
    with demo("--peers", "3", "--messages", "3") as process:
        out, err = process.communicate(timeout=1.5 * PATIENCE)
    assert process.returncode == 0, out + err
    assert len(out.splitlines()) == 1
    report = json.loads(out)
    assert 0 < report.pop("connected_s") < PATIENCE
    assert 0 < report["latency_ms"].pop("p50") <= report["latency_ms"].pop("p99")
    assert report.pop("links") in {2, 3}
    assert sum(report.pop("offers").values()) >= 2
    assert report == {
        "peers": 3,
        "broadcasts": 9,
        "expected": 18,
        "delivered": 18,
        "duplicates": 0,
        "latency_ms": {},
        "direct_total": 6,
        "direct_ok": 6,
        "direct_delivered": 6,
        "receipts": {"delivered": 9, "failed": 0},
        "newcomer": None,
        "partition": None,
        "errors": [],
    }
    assert "connected in" in err


@processes
@linux
def test_all_132_pairs_of_12_peers_exchange_messages_after_every_server_was_killed_and_a_newcomer_came(tmp_path):
    picture = tmp_path / "overlay.svg"
    with demo("--peers", "12", "--messages", "1", "--kill-server", "--plot", str(picture)) as process:
        out, err = process.communicate(timeout=1.5 * PATIENCE)
    assert process.returncode == 0, out + err
    report = json.loads(out)
    assert report["newcomer"]["links_through_mesh"] >= 1
    assert report["direct_total"] == report["direct_ok"] == report["direct_delivered"] == 132
    assert report["delivered"] == report["expected"] == 132
    assert report["links"] <= 12 * 3 / 2
    assert "<svg" in picture.read_text()


@processes
def test_after_a_partition_everybody_hears_what_the_other_half_said_in_it():
    with demo("--peers", "4", "--messages", "3", "--partition", "7") as process:
        out, err = process.communicate(timeout=1.5 * PATIENCE)
    assert process.returncode == 0, out + err
    report = json.loads(out)
    assert report["partition"]["islands"] >= 2
    assert report["partition"]["leaked"] == 0
    for peer in report["partition"]["peers"]:
        assert peer["delivered"] == 9
        assert peer["after_heal"] >= 6
    assert report["receipts"] == {"delivered": 12, "failed": 0}
    assert "parted for 7 s" in err


@processes
def test_a_large_payload_arrives_too_and_people_get_a_summary():
    command = [sys.executable, "-m", "p2pmesh", "demo", "--peers", "2", "--messages", "1", "--payload", "1048576"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "broadcasts  2 of 2 deliveries, 0 duplicates" in result.stdout


@processes
@linux
def test_a_peer_that_is_killed_is_an_error_and_leaves_no_orphans():
    with demo("--peers", "2", "--messages", "1000") as process:
        children = connected_children(process)
        os.kill(children[1], signal.SIGKILL)
        out, _ = process.communicate(timeout=1.5 * PATIENCE)
    report = json.loads(out)
    assert process.returncode == 1
    assert any(f"(process {children[1]}) was killed by signal 9" in error for error in report["errors"])
    assert report["delivered"] < report["expected"]
    assert all(is_gone(child) for child in children)


@processes
@linux
def test_a_peer_that_hangs_is_an_error_and_is_ended():
    with demo("--peers", "2", "--messages", "1", "--timeout", "10") as process:
        wait_for_line(process, lambda line: line and not line.startswith("starting: 0 of"))
        child = next(filter(is_peer, children_of(process.pid)))
        os.kill(child, signal.SIGSTOP)
        out, _ = process.communicate(timeout=1.5 * PATIENCE)
    report = json.loads(out)
    assert process.returncode == 1
    assert any(f"(process {child}) did not end" in error for error in report["errors"])
    assert is_gone(child)


@processes
@linux
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_when_the_demo_itself_is_ended_its_peers_end_with_it(number, status):
    with demo("--peers", "2", "--messages", "1000") as process:
        children = connected_children(process)
        process.send_signal(number)
        process.communicate(timeout=1.5 * PATIENCE)
    assert process.returncode == status
    for child in children:
        wait_for_end(child)


# --- the chat over real links -----------------------------------------------------------------------------------------


@processes
async def test_lines_of_one_pipe_come_out_of_another():
    says = {"ann": b"hello\nworld\n", "bob": b"hi\n"}
    hears = {"ann": [b"bob: hi"], "bob": [b"ann: hello", b"ann: world"]}
    have_heard = {name: trio.Event() for name in says}
    async with open_signaling_server() as server, trio.open_nursery() as nursery:

        async def run(name):
            command = [sys.executable, "-m", "p2pmesh", "chat", server.url, "--name", name, "--wait", "30"]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = await nursery.start(partial(trio.run_process, command, check=False, **pipes))
            await process.stdin.send_all(says[name])
            out = b""
            while not all(line in out.splitlines() for line in hears[name]):
                chunk = await process.stdout.receive_some()
                assert chunk, f"{name} has left early: {out!r}"
                out += chunk
            have_heard[name].set()
            for event in have_heard.values():  # who has nothing more to say leaves once its own lines have arrived
                await event.wait()
            await process.stdin.aclose()
            out += b"".join([chunk async for chunk in process.stdout])
            err = b"".join([chunk async for chunk in process.stderr])
            assert (await process.wait(), err) == (0, b"")
            assert [out.splitlines().count(line) for line in hears[name]] == [1] * len(hears[name])

        for name in says:
            nursery.start_soon(run, name)

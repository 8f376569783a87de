"""The command line without a network: help, ids, errors and exit statuses."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from p2pmesh import ConfigError, Identity, InvalidPeerId, TransportUnavailable
from p2pmesh.cli import main
from p2pmesh.cli.errors import Commands

COMMANDS = sorted(main.commands)
INTERNAL = {"demo-peer", "demo-server"}


def invoke(*args, **options):
    return CliRunner().invoke(main, list(args), **options)


def group_that_raises(error):
    group = Commands("p2pmesh")

    @group.command("fail")
    def fail():
        raise error

    return CliRunner().invoke(group, ["fail"])


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_names_the_commands_and_hides_the_internal_ones():
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("chat", "demo", "id"))
    assert not [name for name in INTERNAL if name in result.stdout]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in INTERNAL])
def test_every_option_can_come_from_the_environment_and_says_so(command):
    result = CliRunner().invoke(main, [command, "--help"], terminal_width=200)
    options = [p for p in main.commands[command].params if isinstance(p, click.Option) and p.name != "help"]
    assert options
    assert result.stdout.count("env var:") == len(options)


def test_version():
    assert "p2pmesh, version" in invoke("--version").stdout


def test_an_option_is_taken_from_the_environment():
    result = invoke("demo", env={"P2PMESH_DEMO_PEERS": "1"})
    assert result.exit_code == 2
    assert "--peers" in result.stderr


# --- p2pmesh id -------------------------------------------------------------------------------------------------------


def test_id_makes_an_identity_file_once(tmp_path):
    path = tmp_path / "me.pem"
    first, second = (json.loads(invoke("id", str(path), "--json").stdout) for _ in range(2))
    assert first["created"]
    assert not second["created"]
    assert first["peer_id"] == second["peer_id"] == Identity.load_or_create(path).peer_id
    assert first["path"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_id_for_people_shows_id_key_and_place(tmp_path):
    path = tmp_path / "me.pem"
    result = invoke("id", str(path))
    who = Identity.load_or_create(path)
    assert result.exit_code == 0
    assert all(text in result.stdout for text in (who.peer_id, who.public_key.hex(), f"{path} (new)"))


def test_id_without_a_path_is_a_new_one_each_time():
    first, second = (json.loads(invoke("id", "--json").stdout) for _ in range(2))
    assert first["peer_id"] != second["peer_id"]
    assert first["path"] is None


def test_id_of_a_file_that_is_none_ends_in_one_line(tmp_path):
    path = tmp_path / "me.pem"
    path.write_text("nonsense")
    path.chmod(0o600)
    result = invoke("id", str(path))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"Error: {path} is no identity file: expected an unencrypted Ed25519 key in PEM form"
    ]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_mesh_error_ends_in_one_line_and_status_1():
    result = group_that_raises(TransportUnavailable("nobody\nanswers"))
    assert result.exit_code == 1
    assert result.stderr == "Error: nobody answers\n"


@pytest.mark.parametrize("error", [ConfigError("no such thing"), InvalidPeerId("no id")])
def test_bad_usage_is_status_2(error):
    result = group_that_raises(error)
    assert result.exit_code == 2
    assert f"Error: {error}" in result.stderr


def test_a_mesh_error_inside_groups_ends_in_one_line_too():
    error = TransportUnavailable("nobody answers")
    result = group_that_raises(ExceptionGroup("outer", [ExceptionGroup("inner", [error]), error]))
    assert result.exit_code == 1
    assert result.stderr == "Error: nobody answers\n"


def test_escape_sequences_in_an_error_do_not_reach_the_terminal():
    result = group_that_raises(TransportUnavailable("refused: \x1b[31mred\x07"))
    assert result.stderr == "Error: refused: red\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("group", [KeyboardInterrupt()])])
def test_ctrl_c_ends_quietly(error):
    result = group_that_raises(error)
    assert result.exit_code == 130
    assert not result.output


def test_a_bug_is_not_hidden():
    group = ExceptionGroup("group", [TransportUnavailable("nobody answers"), RuntimeError("a bug")])
    assert group_that_raises(group).exception is group


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), SystemExit(1)])
def test_a_reader_that_has_gone_ends_quietly(error):
    result = group_that_raises(BaseExceptionGroup("group", [error]))
    assert result.exit_code == 1
    assert not result.output


def test_an_unknown_url_scheme_is_bad_usage():
    result = invoke("chat", "gopher://localhost", input="")
    assert result.exit_code == 2
    assert "gopher" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_demo_that_can_not_be_connected_is_bad_usage():
    result = invoke("demo", "--peers", "3", "--max-peers", "1")
    assert result.exit_code == 2
    assert "--max-peers" in result.stderr


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--kill-server", "--peers", "2"], "--kill-server needs 3 peers"),
        (["--kill-server", "--peers", "2", "--max-peers", "1"], "--kill-server needs"),
        (["--plot", "x.docx"], "--plot draws .png"),
        (["--plot", "/no/such/directory/x.png"], "no directory"),
    ],
)
def test_a_demo_that_could_not_show_what_is_asked_for_does_not_begin(args, complaint):
    result = invoke("demo", *args)
    assert result.exit_code == 2
    assert complaint in result.stderr


# --- logging ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _logging_restored():
    root, ours = logging.getLogger(), logging.getLogger("p2pmesh")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = before[:2]
    ours.setLevel(before[2])


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize(
    ("args", "value", "on"),
    [([], "1", True), (["--debug"], "", True), ([], "", False), ([], "0", False), ([], "*", True)],
)
def test_debug_logging_is_turned_on_by_option_or_environment(args, value, on):
    invoke(*args, "id", env={"DEBUG": value})
    assert logging.getLogger("p2pmesh").isEnabledFor(logging.DEBUG) is on
    assert not logging.getLogger("aioice").isEnabledFor(logging.DEBUG)


# --- as a process -----------------------------------------------------------------------------------------------------


def test_python_m_p2pmesh_is_the_same_command():
    command = [sys.executable, "-m", "p2pmesh", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout.startswith("p2pmesh, version")


def test_help_imports_neither_webrtc_nor_rich():
    code = "import sys; from p2pmesh.cli import main; print({'aiortc', 'rich', 'trio_asyncio'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "set()\n"


class SilentServer:
    """Takes connections and says nothing."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"

    def wait_for_client(self):
        self._client, _ = self._listener.accept()
        assert self._client.recv(1)

    def close(self):
        self._client.close()
        self._listener.close()


@pytest.fixture
def silent_server():
    with contextlib.closing(SilentServer()) as server:
        yield server


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_waiting_for_a_server_ends_quietly_with_130(silent_server):
    command = [sys.executable, "-m", "p2pmesh", "chat", silent_server.url]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored where the tests run
    ) as process:
        silent_server.wait_for_client()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "--room", "caf\udce9"],
        ["chat", "--room", "r" * 129],
        ["chat", "--token", "\udce9"],
        ["chat", "--max-peers", "9" * 30],
        ["chat", "--wait", "inf"],
        ["chat", "--identity", "/dev/null/key"],
        ["chat", "http://there"],
        ["chat", "ws://\udce9"],
        ["demo", "--timeout", "nan"],
        ["demo", "--rate", "nan"],
        ["id", "/dev/null/key"],
        ["simulate", "--peers", "9" * 30],
        ["simulate", "--max-peers", "9" * 30],
        ["simulate", "caf\udce9"],
    ],
)
def test_a_bad_option_of_a_command_is_told_in_one_line(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in {1, 2}
    assert isinstance(result.exception, SystemExit), "no traceback"
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1

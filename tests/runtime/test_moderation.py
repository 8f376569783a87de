"""Block lists, and the files that keep them."""

import os

import pytest

from p2pmesh import BlockListError
from p2pmesh.keyspace import PeerId
from p2pmesh.runtime.moderation import BlockList

IDS = [PeerId(f"{n:040x}") for n in range(8)]


def test_what_is_written_is_read_again_in_its_order(tmp_path):
    path = tmp_path / "blocked"
    blocked = BlockList(10, path)
    for peer in reversed(IDS):
        blocked.add(peer)
    blocked.remove(IDS[3])
    assert list(BlockList(10, path)) == [peer for peer in reversed(IDS) if peer != IDS[3]]
    assert os.listdir(tmp_path) == ["blocked"]


def test_a_file_made_by_hand_is_read(tmp_path):
    path = tmp_path / "blocked"
    path.write_bytes(f"\r\n{IDS[0]}\r\n\n  {IDS[1]}\n{IDS[0]}".encode())
    assert list(BlockList(3, path)) == IDS[:2]


DAMAGED = {
    "text": b"nobody\n",
    "bytes": b"\xff\x00\xfe",
    "half an id": IDS[0][:20].encode(),
    "two in a line": f"{IDS[0]} {IDS[1]}\n".encode(),
    "upper case": b"A" * 40,
    "other digits": ("\u0663" * 40).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_told_in_a_line(tmp_path, content):
    path = tmp_path / "blocked"
    path.write_bytes(content)
    with pytest.raises(BlockListError, match=r"line 1 is not the id of a peer; mend or remove it$") as caught:
        BlockList(10, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("count", [3, 8])
def test_a_file_that_is_too_long_is_not_cut(tmp_path, count):
    path = tmp_path / "blocked"
    path.write_text("\n".join(IDS[:count]))
    with pytest.raises(BlockListError, match=r"longer than MeshConfig.max_blocked allows: 2 ids$"):
        BlockList(2, path)


def test_what_cant_be_read_is_told_in_a_line(tmp_path):
    with pytest.raises(BlockListError, match=r"^can't read the block list .*directory$"):
        BlockList(2, tmp_path)


def test_a_disk_that_fails_leaves_the_old_list(tmp_path, monkeypatch):
    path = tmp_path / "blocked"
    blocked = BlockList(10, path)
    blocked.add(IDS[0])

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(BlockListError, match="No space left"):
            blocked.add(IDS[1])
    assert IDS[1] in blocked
    assert list(BlockList(10, path)) == IDS[:1]
    assert os.listdir(tmp_path) == ["blocked"]
    blocked.add(IDS[2])
    assert list(BlockList(10, path)) == IDS[:3]

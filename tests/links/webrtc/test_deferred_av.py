"""Links come without PyAV, and a program's own use of it, by aiortc or not, is as if there were none of us."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


LINKS = "import sys, p2pmesh.links.webrtc.dialer\n"
MEDIA = """
import asyncio, av
from aiortc.codecs.opus import OpusDecoder, OpusEncoder
from aiortc.codecs.vpx import Vp8Encoder, Vp8Decoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import AudioFrame, AudioStreamTrack, VideoFrame, VideoStreamTrack

async def media():
    frame = await AudioStreamTrack().recv()
    assert isinstance(frame, AudioFrame) and isinstance(frame, av.AudioFrame) and not isinstance(frame, VideoFrame)
    encoder, decoder = OpusEncoder(), OpusDecoder()
    packets = [p for _ in range(5) for p in encoder.encode(frame)[0]]
    (heard,) = decoder.decode(JitterFrame(data=packets[0], timestamp=0))
    seen = await VideoStreamTrack().recv()
    packets = Vp8Encoder().encode(seen, force_keyframe=True)[0]
    print(type(heard) is av.AudioFrame, type(seen) is av.VideoFrame, len(packets) > 0)

asyncio.run(media())
"""


def test_links_load_no_av():
    assert run(LINKS + "print([name for name in sys.modules if name.partition('.')[0] == 'av'])") == "[]\n"


@pytest.mark.parametrize("code", [LINKS + MEDIA, MEDIA, MEDIA + LINKS], ids=["after us", "alone", "before us"])
def test_audio_and_video_work_in_the_same_process(code):
    assert run(code) == "True True True\n"


def test_a_decoder_loads_av_by_itself():
    code = LINKS + "from aiortc.codecs.opus import OpusDecoder\nOpusDecoder()\nprint(type(sys.modules['av']).__name__)"
    assert run(code) == "module\n"


def test_who_imported_av_keeps_it():
    code = (
        "import av, sys\n"
        + LINKS
        + "import aiortc\nprint(sys.modules['av'] is av, aiortc.rtp.AudioFrame is av.AudioFrame)"
    )
    assert run(code) == "True True\n"


def test_what_is_nothing_of_avs_is_no_instance_and_loads_nothing():
    code = LINKS + "from aiortc.rtp import AudioFrame\nprint(isinstance(1, AudioFrame), 'av' in sys.modules)"
    assert run(code) == "False False\n"


def test_an_aiortc_that_imports_more_of_av_gets_it():
    code = """
import sys
from importlib import import_module
from p2pmesh.links.webrtc import deferred_av
for name in [name for name in sys.modules if name.partition('.')[0] == 'aiortc']:
    del sys.modules[name]
with deferred_av._deferred_av():
    import av
    from av.frame import Frame
    from av import FFmpegError
    print(isinstance(FFmpegError, type), av.AudioFrame is not sys.modules['av'].AudioFrame)
"""
    assert run(code) == "True True\n"

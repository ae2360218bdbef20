"""Only a regular local file of a self-contained format is ever opened, and nothing that it names."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.video.make import video
from video import RefusedFile, UnreadableVideo, VideoError, plan
from video.source import FORMATS


@pytest.fixture
def asked():
    """A server on this machine, and the paths that were asked of it."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("reaching", ["network", "file"])
def test_a_playlist_reaches_nothing(name, reaching, tmp_path, asked):
    url, paths = asked
    real = video(tmp_path / "real.mp4", 10)
    target = f"{url}/real.ts" if reaching == "network" else str(real)
    (tmp_path / name).write_text(PLAYLISTS[name].format(target))
    with pytest.raises(UnreadableVideo, match=name):
        plan(tmp_path / name)
    assert paths == []


def test_an_address_is_a_file_name(asked, tmp_path, monkeypatch):
    url, paths = asked
    for address in (f"{url}/a.mp4", "concat:a.mp4|b.mp4", "lavfi:testsrc", "pipe:0", "data:video/mp4;base64,AAAA"):
        with pytest.raises(RefusedFile, match="cannot be opened"):
            plan(address)
    assert paths == []
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "concat:a.mp4", 10)  # a file with such a name is but a file
    assert len(plan("concat:a.mp4")) == 4


def test_an_image_sequence_is_not_opened(tmp_path):
    for number in range(3):
        video(tmp_path / f"f{number}.mp4", 5)
    with pytest.raises(RefusedFile):
        plan(tmp_path / "f%d.mp4")


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    for path in (tmp_path / "pipe.mp4", tmp_path, "/dev/zero", tmp_path / "absent.mp4", "a\0b"):
        with pytest.raises(RefusedFile):
            plan(path)


@pytest.mark.parametrize("data", [b"", b"just a text", bytes(range(256)) * 40])
def test_what_is_no_video_is_an_error(tmp_path, data):
    path = tmp_path / "odd.mp4"
    path.write_bytes(data)
    with pytest.raises(UnreadableVideo, match="odd.mp4: is no video"):
        plan(path)


def test_sound_alone_is_no_video(tmp_path):
    import av
    import numpy as np

    path = tmp_path / "sound.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(UnreadableVideo, match="no video stream"):
        plan(path)


def test_no_format_that_names_other_files_is_allowed():
    reaching = {
        "hls",
        "applehttp",
        "dash",
        "concat",
        "image2",
        "image2pipe",
        "imf",
        "sdp",
        "rtsp",
        "lavfi",
        "ffmetadata",
    }
    assert not reaching & set(FORMATS.split(","))


def test_every_error_is_a_video_error(tmp_path):
    with pytest.raises(VideoError):
        plan(tmp_path)

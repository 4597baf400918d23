import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.sources import published as pipelines
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.speech.config import ARCHITECTURES, build
from parp_cli.runtime.progress import Progress
from tests.models.small import SMALL, randomise

NAME, FILE = "tiny", "tiny.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` under every name, claiming `length` bytes, and counts how often."""

    body = b""
    length: int | None = None
    status = 200
    served = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.served += 1
        self.send_response(self.server.status)
        if self.server.length is not None:
            self.send_header("Content-Length", str(self.server.length))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server on this machine that publishes a small encoder, and an empty hub folder."""
    state = randomise(build(SMALL["wavlm-base"])).state_dict()
    new = "parametrizations.weight.original"
    state = {key.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v"): value for key, value in state.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.body, server.length = buffer.getvalue(), len(buffer.getvalue())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(pipelines, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setitem(pipelines.FILES, NAME, FILE)
        monkeypatch.setitem(ARCHITECTURES, NAME, SMALL["wavlm-base"])
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        yield server
        server.shutdown()
        thread.join()


def test_downloaded_once_with_progress(published: Server, tmp_path: Path) -> None:
    told: list[Progress] = []
    architecture, weights, vocabulary, *_ = load_encoder(NAME, notify=told.append)
    assert (architecture, vocabulary) == (SMALL["wavlm-base"], None)
    expected = randomise(build(SMALL["wavlm-base"])).state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    assert (tmp_path / "checkpoints" / FILE).read_bytes() == published.body
    assert told[-1] == Progress(f"downloading {FILE}", len(published.body), len(published.body), "bytes")
    load_encoder(NAME)
    assert published.served == 1


@pytest.mark.parametrize("damage", ["truncated", "truncated, no length", "flipped", "not found", "a page", "no server"])
def test_a_broken_download_is_named_and_leaves_nothing(damage: str, published: Server, tmp_path: Path) -> None:
    body = bytearray(published.body)
    match damage:
        case "truncated":
            published.body = bytes(body[:-1000])
        case "truncated, no length":
            published.body, published.length = bytes(body[:-1000]), None
        case "flipped":
            body[len(body) // 2] ^= 1
            published.body = bytes(body)
        case "not found":
            published.status = 404
        case "a page":
            published.body, published.length = b"<html>", 6
        case "no server":
            published.shutdown()
            published.server_close()
    with pytest.raises(CheckpointError, match=FILE) as caught:
        load_encoder(NAME)
    assert caught.value.hint is not None
    # A download that broke off goes on the next time; what is wrong is not kept.
    kept = [f"{FILE}.part"] if damage == "truncated" else []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == kept


def test_a_damaged_file_in_the_hub_folder_is_named(published: Server, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FILE).write_bytes(published.body[:1000])
    with pytest.raises(CheckpointError, match=FILE):
        load_encoder(NAME)
    assert published.served == 0

"""Uploads, to a stand-in for the hub on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parp_cli.errors import ResourceError, UsageError
from parp_cli.stages.export import export
from parp_cli.stages.push import push

pytest.importorskip("huggingface_hub", reason="the extra `hub`")


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent, and answers as the hub does; or with `status` to whatever it is asked."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, object]] = []
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        hub.asked.append(self.path)
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.status != 200:
            self._answer({"error": "no"})
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer({"url": f"{hub.url}/me/model"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            self._answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    hub.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self._answer({"commitUrl": f"{hub.url}/me/model/commit/abc", "commitOid": "abc", "pullRequestUrl": None})
        else:
            self._answer({})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self._answer({"error": "no"} if self.server.status != 200 else {"id": "me/model", "siblings": []})

    def _answer(self, content: dict[str, object]) -> None:
        self.send_response(self.server.status)
        answer = json.dumps(content).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return export(trained, to="hf", out=tmp_path / "hf").path


@pytest.mark.parametrize("private", [True, False])
def test_it_sends_the_export_and_nothing_else(hub: Hub, folder: Path, private: bool) -> None:
    (folder / "notes.md").write_text("mine")
    (folder / "audio.wav").write_bytes(b"mine")
    done = push(folder, "me/model", private=private, endpoint=hub.url)
    assert (done.url, done.commit) == (f"{hub.url}/me/model", "abc")
    assert set(hub.files) == set(done.files) == {path.name for path in folder.iterdir()} - {"notes.md", "audio.wav"}
    assert all(hub.files[name] == (folder / name).read_bytes() for name in hub.files)
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files)
    (created,) = hub.created
    assert created["name"] == "model"
    assert bool(created.get("private") or created.get("visibility") == "private") == private


def test_what_the_hub_refuses(hub: Hub, folder: Path) -> None:
    hub.status = 401
    with pytest.raises(UsageError, match="does not let you write to me/model") as raised:
        push(folder, "me/model", endpoint=hub.url)
    assert "hf auth login" in (raised.value.hint or "")
    hub.status = 400
    with pytest.raises(ResourceError, match="the hub failed on me/model"):
        push(folder, "me/model", endpoint=hub.url)
    assert not hub.files


def test_what_is_no_export(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"is no exported folder: it has no config\.json"):
        push(tmp_path, "me/model")
    with pytest.raises(UsageError, match="names no repository"):
        push(folder, "model")
    with pytest.raises(ResourceError, match="cannot be reached"):
        push(folder, "me/model", endpoint="http://127.0.0.1:9")

"""Checkpoints from the web: whole or not there, one per URL, in limited time; secrets stay so."""

import base64
import io
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import NANO_CONFIG, ROOT, SMALL_ARCH, tool_main

from crossformer_mm import CrossFormer
from crossformer_mm.checkpoints import download
from crossformer_mm.checkpoints.loader import find_file
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.utils.errors import CheckpointError, mask_secrets

pytestmark = pytest.mark.fault("URLs")


def numbers(count: int) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.ones(count)}, file)
    return file.getvalue()


class Server(BaseHTTPRequestHandler):
    """Gives other numbers for another path or query, and what its names say."""

    asked: list[tuple[str, str | None]] = []
    ended = threading.Event()

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        count = 3 if "/b/" in self.path or "v=2" in self.path else 100_000
        body = b"<html>please log in</html>" if "page" in self.path else numbers(count)
        self.send_response(302 if "moved" in self.path else 404 if "/no.pth" in self.path else 200)
        if "moved" in self.path:
            self.send_header("Location", "/a/model.pth")
        if "unknown" not in self.path:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "slow" in self.path:
            while not self.ended.wait(0.01):
                self.wfile.write(b"x")
        if "hang" in self.path:
            self.wfile.write(body[:100])
            self.ended.wait()
        self.wfile.write(body[:5000] if "cut" in self.path or "unknown" in self.path else body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def address(tmp_path, monkeypatch) -> Iterator[str]:
    """Of a server; what is fetched goes to ``tmp_path``."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "ended", threading.Event())
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        Server.ended.set()
        server.shutdown()


def size_of(url: str) -> int:
    return load_file(find_file(url))["a"].numel()


@pytest.mark.families
def test_each_address_has_its_own_file_and_is_fetched_once(address):
    counts = {"a/model.pth": 100_000, "b/model.pth": 3, "m.pth?v=1": 100_000, "m.pth?v=2": 3}
    for _ in range(2):
        assert {name: size_of(f"http://{address}/{name}") for name in counts} == counts
    assert len(Server.asked) == 4
    assert find_file(f"http://{address}/a/model.pth").name.startswith("model-")
    for name in ("", "n" * 300 + ".pth", "%2e%2e%2f%00.pth", "x.pth#y"):
        assert size_of(f"http://{address}/moved/{name}") == 100_000


FAILURES = {
    "cut.pth": "the connection ended .* bytes before the end",
    "unknown.pth": "what it gives is cut off",  # no length was given
    "page.pth": "what it gives is a web page",
    "no.pth": "HTTP Error 404",
    "hang.pth": "timed out",
    "slow.pth": r"\d+ bytes in \d+ s are too few",
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_not_whole_is_named_and_not_kept(address, tmp_path, monkeypatch, name):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    start, url = time.monotonic(), f"http://me:secret@{address}/{name}"
    shown = mask_secrets(url).replace("*", r"\*")
    with pytest.raises(CheckpointError, match=f"^checkpoint {shown}.*{FAILURES[name]}") as caught:
        find_file(url)
    assert "secret" not in str(caught.value) and str(caught.value).isprintable()
    assert time.monotonic() - start < 10
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.families
@pytest.mark.parametrize("url", ["http://host:port/w", "http://no host/w", "http:///x", "http://["])
def test_an_address_that_is_none_is_named(tmp_path, monkeypatch, url):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        find_file(url)
    assert str(caught.value).startswith(f"checkpoint {url} cannot be downloaded: ")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_cache_that_cannot_be_made_is_named(address, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/proc/nope")
    with pytest.raises(CheckpointError, match=r"c\.pth cannot be downloaded: .*/proc/nope"):
        find_file(f"http://{address}/c.pth")


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(address, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, age in {".w.pth.1.tmp": 2 * download.OUTDATED, ".w.pth.2.tmp": 0}.items():
        (folder / name).write_bytes(b"x")
        moment = time.time() - age
        os.utime(folder / name, (moment, moment))
    found = find_file(f"http://{address}/w.pth")
    assert {path.name for path in folder.iterdir()} == {".w.pth.2.tmp", found.name}


def test_a_password_is_sent_to_the_server_alone(address, capfd):
    assert size_of(f"http://me:s%40c@{address}/moved/w.pth?token=abc&v=1") == 100_000
    login = "Basic " + base64.b64encode(b"me:s@c").decode()
    assert Server.asked == [("/moved/w.pth?token=abc&v=1", login), ("/a/model.pth", None)]
    said = "".join(capfd.readouterr())
    assert f"http://***@{address}/moved/w.pth?token=***&v=1 to " in said


def test_no_password_is_printed_by_the_tools_and_libraries(address, toy_coco, tmp_path, capfd):
    url = f"http://me:secret@{address}/w.pth?X-Signature=a1b2c3"
    options = ["--work-dir", tmp_path / "work", "--cfg-options", f"data_root={toy_coco}"]
    for tool, checkpoint in (("test", [url]), ("train", ["--pretrained", url])):
        with pytest.raises(SystemExit) as ended:
            tool_main(ROOT / f"tools/{tool}.py", NANO_CONFIG, *checkpoint, *options)
        said = "".join(capfd.readouterr()) + ended.value.code
        assert "does not fit" in said and "http://***@" in said
        assert [li for li in said.splitlines() if "secret" in li or "a1b2c3" in li] == []
    with pytest.raises(CheckpointError, match=r"http://\*\*\*@") as caught:
        CrossFormer(SMALL_ARCH, init_cfg=dict(type="Pretrained", checkpoint=url)).init_weights()
    assert "secret" not in str(caught.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize("script", ["dist_test", "dist_train", "slurm_test"])
def test_the_scripts_take_addresses(run_tool, tmp_path, script):
    fake = tmp_path / "srun"
    fake.write_text('#!/bin/sh\necho "started: $@"\n')
    fake.chmod(0o755)
    url = "http://127.0.0.1:1/w.pth"
    arguments = ("part", "job", NANO_CONFIG, url) if "slurm" in script else (NANO_CONFIG, 2, url)
    path = f"{tmp_path}:{os.environ['PATH']}"
    said = run_tool("bash", ROOT / f"tools/{script}.sh", *arguments, PYTHON=str(fake), PATH=path)
    assert said.stdout.startswith("started: ") and url in said.stdout

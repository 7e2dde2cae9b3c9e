"""Fetch one file over HTTP into place: resumed after an interruption, checked, renamed at the end.

Standard library only. What a server sends is not trusted: the caller knows the SHA-256.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import netrc
import os
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from ..formats.errors import CapacityError, ConfigError
from .pip_config import IndexSettings, without_credentials
from .render.text import size

CHUNK_BYTES = 1 << 18
MAX_ATTEMPTS = 4


class DownloadError(ConfigError):
    """One source did not deliver; another may."""


def say(text: str) -> None:
    """Tell the user what is being done, on standard error."""
    print(text, file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise ``CapacityError`` unless the disk of ``folder`` has ``n_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise CapacityError(f"{folder}: {size(n_bytes)} needed, {size(free)} free")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time do something; a second one waits and says so."""
    if sys.platform == "win32":  # no advisory locks in the standard library: the check sums decide
        yield
        return
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another llmrun that is downloading the same file")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


class Web:
    """Opens URLs with the user's certificates, proxy, credentials and time limit."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings

    def open(self, url: str, *, accept: str = "*/*", start: int = 0) -> IO[bytes]:
        """Return the response to a GET of ``url`` from byte ``start`` on, if the server can do that.

        Raises:
            DownloadError: no such file, no connection, or a scheme other than http, https and file.
        """
        parts = urlsplit(url)
        shown = without_credentials(url)
        if parts.scheme not in ("http", "https", "file"):
            raise DownloadError(f"{shown}: expected an http, https or file URL")
        request = urllib.request.Request(shown, headers={"Accept": accept, "User-Agent": "llmrun"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        credentials = self._credentials(url)
        if credentials:  # unredirected: another host must not get them
            request.add_unredirected_header("Authorization", f"Basic {credentials}")
        try:
            return self._opener(parts.hostname or "").open(request, timeout=self._settings.timeout_s)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            error.close()
            raise DownloadError(f"{shown}: HTTP {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise DownloadError(f"{shown}: {reason}") from None

    def _opener(self, host: str) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=self._context(host))]
        if self._settings.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self._settings.proxy, "https": self._settings.proxy}))
        return urllib.request.build_opener(*handlers)

    def _context(self, host: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if host in self._settings.trusted_hosts:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        cert = self._settings.cert
        try:
            if cert:
                context.load_verify_locations(capath=cert) if Path(cert).is_dir() else context.load_verify_locations(
                    cert
                )
            elif not context.cert_store_stats()["x509_ca"]:  # python.org's build for macOS comes without any
                import certifi

                context.load_verify_locations(certifi.where())
        except (OSError, ImportError):
            pass  # the connection's own error says what is wrong
        return context

    @staticmethod
    def _credentials(url: str) -> str | None:
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if not user and parts.hostname:
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                found = netrc.netrc().authenticators(parts.hostname)
                user, password = (found[0], found[2] or "") if found else ("", "")
        return base64.b64encode(f"{user}:{password}".encode()).decode("ascii") if user else None


def download(
    web: Web, url: str, part: Path, *, n_bytes: int, sha256: str, progress: Callable[[int, int], None]
) -> None:
    """Make ``part`` the whole file: what it already holds is kept, and a broken connection is taken up again.

    Args:
        web: how to open URLs.
        url: where the file is.
        part: the growing file.
        n_bytes: the file's size.
        sha256: its check sum.
        progress: called with (bytes so far, bytes in all).

    Raises:
        DownloadError: the server gave up, or sent something else.
    """
    for attempt in range(MAX_ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        if before < n_bytes:
            try:
                _fetch_rest(web, url, part, n_bytes, progress)
            except DownloadError:
                after = part.stat().st_size if part.exists() else 0
                if attempt + 1 == MAX_ATTEMPTS or after == before:
                    raise
                continue
        if part.stat().st_size == n_bytes and sha256_of(part) == sha256:
            return
        if part.stat().st_size >= n_bytes:  # not what was asked for: nothing of it is worth keeping
            part.unlink()
            if before == 0:
                break
    raise DownloadError(f"{without_credentials(url)}: the file has not the expected size and SHA-256")


def _fetch_rest(web: Web, url: str, part: Path, n_bytes: int, progress: Callable[[int, int], None]) -> None:
    done = part.stat().st_size if part.exists() else 0
    with web.open(url, start=done) as response:
        if getattr(response, "status", 200) != 206:  # the server starts again from the beginning
            done = 0
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(done)
            file.seek(done)
            try:
                while chunk := response.read(CHUNK_BYTES):
                    done += len(chunk)
                    if done > n_bytes:
                        raise DownloadError(f"{without_credentials(url)}: larger than the expected {size(n_bytes)}")
                    file.write(chunk)
                    progress(done, n_bytes)
            except (OSError, http.client.HTTPException) as error:
                raise DownloadError(f"{without_credentials(url)}: {error or type(error).__name__}") from None
    if done < n_bytes:
        raise DownloadError(f"{without_credentials(url)}: ended after {size(done)} of {size(n_bytes)}")


def write_checked(source: IO[bytes], target: Path, *, sha256: str) -> None:
    """Copy ``source`` to ``target``, which appears under its name only when complete and right.

    Raises:
        DownloadError: the check sum differs.
        ConfigError: the file cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise DownloadError(f"{target.name}: SHA-256 is {digest.hexdigest()}, expected {sha256}")
        part.replace(target)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)

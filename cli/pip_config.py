"""Where this user's Python packages come from: the settings of pip and uv, read without either of them.

A ``uv tool`` environment has no pip, yet whoever has set an index for pip or uv expects it to be used.
Order of precedence, as pip has it: environment, ``PIP_CONFIG_FILE``, site, user, global.
Source: https://pip.pypa.io/en/stable/topics/configuration/
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ..formats.record import Record

PYPI = "https://pypi.org/simple"


class IndexSettings(Record, kw_only=True):
    """Package indexes in the order in which to ask them, and how to reach them."""

    urls: tuple[str, ...]  # may hold credentials: print them through `without_credentials`
    folders: tuple[Path, ...] = ()  # local folders of wheels (find-links)
    cert: str | None = None  # file or folder of CA certificates
    proxy: str | None = None
    trusted_hosts: frozenset[str] = frozenset()  # certificates are not checked there
    timeout_s: float = 30.0


def index_settings(environ: Mapping[str, str] = os.environ) -> IndexSettings:
    """Return the settings of this process's environment and of pip's configuration files.

    Files that cannot be read or parsed are passed over: pip itself reports those.
    """
    pip = _pip_options(environ)
    main = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL") or pip.get("index-url") or PYPI
    named = environ.get("UV_INDEX", "").split()
    extra = [*named, *environ.get("UV_EXTRA_INDEX_URL", "").split(), *pip.get("extra-index-url", "").split()]
    urls = [] if _is_true(pip.get("no-index", "")) else [main, *extra]
    urls = [_index_name_removed(url) for url in urls]
    folders = [_local_folder(place) for place in pip.get("find-links", "").split()]
    try:
        timeout_s = max(1.0, float(pip.get("default-timeout") or pip.get("timeout") or 30))
    except ValueError:
        timeout_s = 30.0
    return IndexSettings(
        urls=tuple(dict.fromkeys(url.rstrip("/") for url in urls if url)),
        folders=tuple(folder for folder in folders if folder is not None),
        cert=pip.get("cert") or None,
        proxy=pip.get("proxy") or None,
        trusted_hosts=frozenset(pip.get("trusted-host", "").split()),
        timeout_s=timeout_s,
    )


def without_credentials(url: str) -> str:
    """Return the URL without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _pip_options(environ: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    if environ.get("PIP_CONFIG_FILE") != os.devnull:
        for path in _config_files(environ):
            parser = configparser.RawConfigParser()
            try:
                parser.read(path, encoding="utf-8")
            except (configparser.Error, OSError, ValueError):
                continue
            for section in ("global", "download"):  # the command's own section wins
                if parser.has_section(section):
                    options.update((key.replace("_", "-"), value) for key, value in parser.items(section))
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return options


def _config_files(environ: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environ.get("HOME") or environ.get("USERPROFILE") or "~").expanduser()
    if sys.platform == "win32":
        yield Path(environ.get("PROGRAMDATA", r"C:\ProgramData")) / "pip" / "pip.ini"
        yield home / "pip" / "pip.ini"
        yield Path(environ.get("APPDATA", str(home))) / "pip" / "pip.ini"
        yield Path(sys.prefix) / "pip.ini"
    else:
        if sys.platform == "darwin":
            yield Path("/Library/Application Support/pip/pip.conf")
        for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
            yield Path(folder) / "pip" / "pip.conf"
        yield Path("/etc/pip.conf")
        yield home / ".pip" / "pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
        if sys.platform == "darwin":
            yield home / "Library" / "Application Support" / "pip" / "pip.conf"
        yield Path(sys.prefix) / "pip.conf"
    if environ.get("PIP_CONFIG_FILE"):
        yield Path(environ["PIP_CONFIG_FILE"])


def _is_true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on", "t", "y")


def _index_name_removed(url: str) -> str:
    """Drop the name of uv's ``name=url`` form."""
    name, equals, rest = url.partition("=")
    return rest if equals and "://" not in name and "/" not in name else url


def _local_folder(place: str) -> Path | None:
    path = Path(urlsplit(place).path if place.startswith("file:") else place).expanduser()
    return path if "://" not in place.removeprefix("file://") and path.is_dir() else None

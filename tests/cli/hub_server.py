"""A small Hugging Face hub on this machine: what ``huggingface_hub`` asks for, with the hub's words for refusals."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {  # repository: status, X-Error-Code, X-Error-Message
    "org/gated": (403, "GatedRepo", "Access to model org/gated is restricted."),
    "org/broken": (500, "", ""),
}


@contextmanager
def hub_server(folder, repo, *, missing=(), cut=()):
    """Serve the files of a folder as a repository; yields the server.

    Args:
        folder: with the files.
        repo: ``user/repo``.
        missing: files that are listed but not there.
        cut: files whose first download breaks off in the middle.

    Yields:
        The server: ``url``, and ``fetched``, the names of files that were sent (with the first byte where it is not 0).
    """
    cut = set(cut)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def refuse(self, status, code, message):
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", message)
            self.send_header("X-Request-Id", "Root=1-2-3")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            asked = path.removeprefix("/api/models").strip("/")
            wanted = "/".join(asked.split("/")[:2])
            if wanted in ERRORS:
                self.refuse(*ERRORS[wanted])
            elif wanted != repo:
                self.refuse(401, "RepoNotFound", "Repository not found")
            elif path.startswith("/api/"):
                files = [{"rfilename": f.name, "size": f.stat().st_size} for f in sorted(folder.iterdir())]
                self.deliver(json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode(), None)
            else:
                name = asked.removeprefix(f"{repo}/resolve/").partition("/")[2]
                if name in missing or not (folder / name).is_file():
                    self.refuse(404, "EntryNotFound", "Entry not found")
                else:
                    self.deliver((folder / name).read_bytes(), name)

        def deliver(self, data, name):
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if name is not None:
                server.fetched.append(f"{name}@{start}" if start else name)
            if name in cut:
                cut.remove(name)
                self.wfile.write(data[start : start + (len(data) - start) // 2])
                self.close_connection = True
                self.connection.shutdown(1)
            else:
                self.wfile.write(data[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url, server.fetched = f"http://127.0.0.1:{server.server_port}", []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

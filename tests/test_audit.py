import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"
NEW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fixed_in": ["2.1", "3.0"], "withdrawn": None}
OLD = {"id": "PYSEC-2", "aliases": [], "fixed_in": [], "withdrawn": "2020-01-01"}
FREE = {"info": {"yanked": False}, "vulnerabilities": []}


@pytest.fixture
def audit(tmp_path):
    """Audit a requirements file at an index with these pages."""
    servers = []

    def run(requirements, pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                page = pages.get(self.path)
                self.send_response(page if isinstance(page, int) else 404 if page is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(page).encode())

            def log_message(self, *arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{servers[-1].server_port}/simple"
        return _run(tmp_path, requirements, index)

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def _run(folder, requirements, index):
    (folder / "pins.txt").write_text(requirements)
    command = [sys.executable, str(SCRIPT), str(folder / "pins.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PIP_INDEX_URL": index})
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_advisories_and_yanked_releases_are_found(audit):
    pages = {
        "/pypi/good/1.0/json": FREE,
        "/pypi/torch/2.13.0/json": FREE | {"vulnerabilities": [OLD]},
        "/pypi/bad/2.0/json": {"info": {"yanked": True}, "vulnerabilities": [NEW, OLD]},
    }
    code, lines, _ = audit("# made by hand\ngood==1.0\ntorch==2.13.0+cpu\nbad==2.0  # why\n", pages)
    assert code == 1
    assert lines == [
        "bad 2.0: PYSEC-1, fixed in 2.1, 3.0",
        "bad 2.0: yanked",
        "1 of 3 packages have findings.",
    ]
    code, lines, _ = audit("good==1.0\n", pages)
    assert (code, lines) == (0, ["0 of 1 packages have findings."])


def test_an_index_without_advisories_is_said_to_be_one(audit):
    files = [
        {"filename": "Good-1.0-py3-none-any.whl", "yanked": False},
        {"filename": "good-1.0.tar.gz", "yanked": "broken"},
        {"filename": "good-2.0.tar.gz", "yanked": "broken"},
    ]
    pages = {"/simple/good/": {"files": files}}
    less = "For {} of them the index serves no advisories: only the yanked mark was read."
    assert audit("Good==1.0\n", pages)[:2] == (0, ["0 of 1 packages have findings.", less.format(1)])
    code, lines, _ = audit("Good==2.0\ngood==3.0\n", pages)
    assert (code, lines[:2]) == (1, ["Good 2.0: yanked", "good 3.0: not in the index"])
    assert lines[-1] == less.format(2)


def test_what_could_not_be_asked_is_not_said_to_be_clean(audit, tmp_path):
    pages = {"/pypi/good/1.0/json": 500, "/pypi/bad/1.0/json": FREE}
    code, lines, _ = audit("good==1.0\nbad==1.0\n", pages)
    assert code == 2
    assert lines == ["Nothing is known: the index could not be asked (HTTPError)."]
    code, lines, _ = _run(tmp_path, "good==1.0\n", "http://127.0.0.1:9/simple")
    assert (code, lines) == (2, ["Nothing is known: the index could not be asked (URLError)."])


def test_a_file_without_pins_and_an_index_without_encryption_are_refused(tmp_path):
    code, _, error = _run(tmp_path, "torch>=2\n", "https://127.0.0.1")
    assert code == 2
    assert "the file must pin packages as name==version, got none in" in error
    code, _, error = _run(tmp_path, "torch==2\n", "http://pypi.example.org/simple")
    assert code == 2
    assert "the index must be reached by https, got http://pypi.example.org/pypi/torch/2/json" in error

"""DALI opens the files of an s3:// set itself: over HTTP, from a stand-in server on the loopback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
READ = """
import pipelines
from pipelines.sources.s3 import from_listing
keys = [(f"set/{name}/0.png", 1) for name in ("a", "b", "c", "d")]
split = from_listing("s3://bucket/set", keys, pipelines.sources.imageset.Exclusions()).train
batch = next(pipelines.create("dali", split=split, images_per_batch=4, image_size=8, resized_side=8, dtype="uint8", training=False))
print(batch.images[:, :, 4, 4].tolist())
"""


def colour(key: str) -> tuple[int, int, int]:
    return (10 * ord(key[-7]) % 256, 50, 200)


class Objects(BaseHTTPRequestHandler):
    """Any key under /bucket/ is a flat PNG of a colour of its own; HEAD and GET with ranges, as S3 answers them."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour(self.path.partition("?")[0])).save(file, "PNG")
        whole = file.getvalue()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = whole[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}")
        self.send_header("ETag", '"0"')
        self.end_headers()
        return part

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_images_of_a_bucket_are_read_by_dali_itself(endpoint: str) -> None:
    credentials = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", READ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **credentials, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"},
    )
    wanted = [list(colour(f"/bucket/set/{name}/0.png")) for name in "abcd"]
    assert done.stdout.strip() == str(wanted), done.stderr

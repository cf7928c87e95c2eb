"""A hub of one's own on 127.0.0.1: what huggingface_hub's client asks of the real one to fetch a
file, served from memory.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import timm
import torch
from safetensors.torch import save
from timm.layers import LayerScale
from torch import nn

COMMIT = "c0ffee" + "0" * 34
FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<name>[^?]+)")


def weights_of(name: str, seed: int = 0) -> tuple[str, bytes, dict[str, torch.Tensor]]:
    """Random weights of a timm architecture as the hub keeps them: the repository of the published
    ones, the bytes of `model.safetensors`, and the tensors.
    """
    torch.manual_seed(seed)
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts some at 0, behind which nothing has a slope
        elif isinstance(module, LayerScale):
            nn.init.ones_(module.gamma)  # and these at 1e-5, which leaves all images alike
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    return timm.get_pretrained_cfg(name).hf_hub_id, save(state), state


@contextmanager
def local_hub(files: dict[tuple[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serves files by (repository, name). Yields the address, and the list of what was asked for,
    which grows.
    """
    asked = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self, body: bool = False):
            asked.append(f"{self.command} {self.path}")
            place = FILE.fullmatch(self.path)
            content = place and files.get((place["repository"], place["name"]))
            self.send_response(200 if content else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if content:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Type", "application/octet-stream")
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def do_GET(self):
            self.do_HEAD(body=True)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def environment_of(address: str, cache: str, **more: str) -> dict[str, str]:
    """This process's environment with the local hub in place of the real one, and an empty cache.

    The client reads its settings once, when it is imported: they belong to a new process.
    """
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "CTRACE_"))}
    kept = {k: v for k, v in kept.items() if not k.upper().endswith("_PROXY")}
    return kept | {"HF_ENDPOINT": address, "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1"} | more

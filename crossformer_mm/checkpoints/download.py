"""Checkpoints from the web, kept in torch's cache folder: complete ones only, each URL its own."""

import base64
import hashlib
import re
import time
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.utils.errors import CheckpointError, mask_secrets
from crossformer_mm.utils.io import atomic_write

TIMEOUT = 30  # seconds without an answer or a byte
MIN_SPEED = 1024  # bytes per second, on average, after these seconds
OUTDATED = 3600  # seconds that what a killed process had begun to write stays


def download(url: str) -> Path:
    """Return the file of an ``http(s)://`` URL, fetched if it is not in the cache.

    Its name has the hash of the whole URL. A user and password in it are sent as HTTP has it.

    Raises:
        CheckpointError: If it cannot be fetched whole, or is no checkpoint. Nothing is kept then.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / _cache_name(url)
    # The first process fetches it for all; on other machines it may still be missing then.
    if get_rank() != 0:
        barrier()
    try:
        if not path.is_file():
            _fetch(url, path)
    except CheckpointError as error:
        raise type(error)(f"checkpoint {url}: {error}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"checkpoint {url} cannot be downloaded: {reason}") from error
    if get_rank() == 0:
        barrier()
    return path


def _cache_name(url: str) -> str:
    """The name in the URL, so that people recognise it, and the hash."""
    name = unquote(re.sub(r"[?#].*", "", url.partition("://")[2]).rpartition("/")[2])
    name = Path(re.sub(r"[^\w.-]", "_", name))
    digest = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{name.stem[:100] or 'checkpoint'}-{digest}{name.suffix[:20]}"


def _fetch(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for begun in path.parent.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - begun.stat().st_mtime > OUTDATED:
                begun.unlink()
    print_log(f"Downloading {mask_secrets(url)} to {path}", logger="current")
    with atomic_write(path) as temporary:
        with urlopen(_request(url), timeout=TIMEOUT) as answer, temporary.open("xb") as file:
            _copy(answer, file)
        try:
            load_file(temporary, "meta")
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(temporary), "what it gives")) from error


def _request(url: str) -> Request:
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers={"User-Agent": "torch.hub"})
    if at:  # not for where the answer may send us
        token = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _copy(answer: HTTPResponse, file: BinaryIO) -> None:
    """Write what a server sends; raises an error if that is not all, or comes too slowly."""
    if not isinstance(answer, HTTPResponse):
        raise ValueError("the server sends to another protocol than http")
    start, size = time.monotonic(), 0
    while block := answer.read1(1 << 20):
        file.write(block)
        size += len(block)
        if size < MIN_SPEED * (time.monotonic() - start - TIMEOUT):
            raise TimeoutError(f"{size} bytes in {time.monotonic() - start:.0f} s are too few")
    if answer.length:  # what is left of the length that the server gave
        raise ConnectionError(f"the connection ended {answer.length} bytes before the end")

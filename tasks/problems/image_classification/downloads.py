"""Weights that torchvision and timm publish, fetched through their own loaders and caches.

`TORCH_HOME`, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and proxies are respected.
"""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from tasks import files
from tasks.errors import ThawlineError
from tasks.problems.image_classification.architectures import Architecture

CONNECT_SECONDS = 5.0
STALL_SECONDS = 30.0


def fetch(architecture: Architecture) -> Path:
    """The file of a network's published weights, from the library's cache or downloaded.

    Raises `ThawlineError`, within seconds where there is no network, saying how else to get them.
    """
    published = architecture.configuration()
    if architecture.library == "torchvision":
        return _by_url(architecture, published.url)
    if published is None or not (published.hf_hub_id or published.url):
        raise ThawlineError(
            f"timm publishes no weights for {architecture.full}: choose another backbone, or give "
            f"a file of your own under embed.weights.{architecture.name}"
        )
    if published.hf_hub_id:
        return _from_hub(architecture, published)
    return _by_url(architecture, published.url)


def _by_url(architecture: Architecture, url: str) -> Path:
    """A file in torch's hub folder; its content must have the hash in its name."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    stated = torch.hub.HASH_REGEX.search(path.name)
    prefix = stated.group(1) if stated else ""
    if not path.is_file():
        with _download(architecture, url):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), prefix or None, progress=False)
    elif not files.sha256_file(path).startswith(prefix):
        raise ThawlineError(f"{path} is damaged (its sha256 must begin with {prefix}): delete it")
    return path


def _from_hub(architecture: Architecture, published: Any) -> Path:
    """A file of a Hugging Face repository, from its cache first."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    names = [published.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
    for name in names:
        cached = try_to_load_from_cache(published.hf_hub_id, name)
        if isinstance(cached, str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(architecture, "HF_HUB_OFFLINE is set")
    with _download(architecture, constants.ENDPOINT):
        for name in names[:-1]:
            try:
                return Path(hf_hub_download(published.hf_hub_id, name))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(published.hf_hub_id, names[-1]))


@contextmanager
def _download(architecture: Architecture, url: str) -> Iterator[None]:
    """Check that the host answers at all, then turn what goes wrong into one sentence."""
    if reason := unreachable(url):
        raise _unavailable(architecture, reason)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    except Exception as error:  # each library has its own errors for the same few causes
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise _unavailable(architecture, text) from error
    finally:
        socket.setdefaulttimeout(before)


def unreachable(url: str) -> str | None:
    """Why nothing answers at `url`, or None when something does; at most `CONNECT_SECONDS`."""
    host = urlsplit(url).hostname
    found = [f"{host} does not answer within {CONNECT_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            opener = urllib.request.build_opener()  # it takes the proxies of the environment
            opener.open(urllib.request.Request(url, method="HEAD"), timeout=30).close()
        except urllib.error.HTTPError:
            found.clear()  # it answers, if only to refuse this question
        except (OSError, ValueError) as error:
            found[0] = f"{host} cannot be reached: {getattr(error, 'reason', error)}"
        else:
            found.clear()

    # In a thread, as looking up a name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)
    return next(iter(found), None)


def _unavailable(architecture: Architecture, reason: str) -> ThawlineError:
    name = architecture.name
    return ThawlineError(
        f"the weights of {name} are not on this machine and cannot be downloaded ({reason}); "
        f"with a network run: thawline weights {name}; or name a local file and its sha256 "
        f"under embed.weights.{name}"
    )

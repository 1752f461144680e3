"""Where pretrained encoders come from: a local folder, the catalogue, a packaged model, or the hub.

Each is bound to its content: the weights, the configuration and the vocabulary. Nothing of it is
run as code.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks import catalogue, files
from tasks.errors import ThawlineError, UnknownName
from tasks.params import EmbedParams, WeightsFile
from tasks.problems.text_classification import encoders, starts, tokens
from tasks.problems.text_classification.starts import Start

UNKNOWN = "unknown, check before use"
CONFIG, VOCABULARY, TENSORS = "config.json", "tokenizer.json", "model.safetensors"
VOCABULARIES = (VOCABULARY, "vocab*", "*.model")
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TOKENIZER = (*VOCABULARIES, *OTHERS)
WANTED = [CONFIG, TENSORS, *TOKENIZER]  # of a repository


@dataclass(frozen=True)
class Hub:
    """A model of the hub, as its card describes it."""

    repository: str
    licence: str
    pretraining: str


HUB = {
    "bert_base": Hub("google-bert/bert-base-uncased", "Apache-2.0", "BookCorpus, Wikipedia"),
    "bert_base_chinese": Hub("google-bert/bert-base-chinese", "Apache-2.0", "Chinese Wikipedia"),
    "bert_base_multilingual": Hub(
        "google-bert/bert-base-multilingual-cased", "Apache-2.0", "Wikipedia in 104 languages"
    ),
    "distilbert_base": Hub(
        "distilbert/distilbert-base-uncased", "Apache-2.0", "BookCorpus, Wikipedia"
    ),
    "distilbert_base_multilingual": Hub(
        "distilbert/distilbert-base-multilingual-cased", "Apache-2.0", "Wikipedia in 104 languages"
    ),
    "minilm_l12_multilingual": Hub(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "Apache-2.0",
        "paraphrases in 50 languages",
    ),
    "roberta_base": Hub("FacebookAI/roberta-base", "MIT", "BookCorpus, Wikipedia, CC-News, others"),
    "xlm_roberta_base": Hub("FacebookAI/xlm-roberta-base", "MIT", "CommonCrawl in 100 languages"),
}


PICKLED = (
    "; a pytorch_model.bin could run code: where you trust it, load it and write it with "
    "transformers' save_pretrained into a folder for embed.weights"
)


@dataclass(frozen=True)
class Pretrained:
    """An encoder of transformers without its head, and what is known about it."""

    model: nn.Module
    vocabulary: str
    sha256: str
    source: str
    licence: str
    pretraining: str
    start: Start | None = None  # the packaged model that it was
    head: dict[str, Tensor] = field(default_factory=dict)  # of a start


def find(name: str, embed: EmbedParams, root: Path) -> Pretrained:
    """The encoder of a name. Raises `UnknownName`, or `ThawlineError` when it cannot be had."""
    if name in embed.weights:
        return _local(name, embed.weights[name], root)
    folder = fetch(name)
    if name in _catalogued():
        entry = catalogue.known_weights()[name]
        return _read(folder, entry.title, entry.licence, entry.pretraining)
    known = HUB.get(name) or Hub(_repository(name), UNKNOWN, UNKNOWN)
    return _read(folder, f"Hugging Face: {known.repository}", known.licence, known.pretraining)


def fetch(name: str) -> Path:
    """The folder of a named encoder, fetched if need be.

    Names are those of the catalogue and of `HUB`, and `OWNER--NAME` for any other of the hub.
    Raises as `find`.
    """
    if name in _catalogued():
        return catalogue.fetch_weights(name)
    if name not in HUB and "--" not in name:
        hint = "Others of the hub are written OWNER--NAME; a folder goes into embed.weights"
        raise UnknownName("backbone", name, [*_catalogued(), *HUB], hint)
    from huggingface_hub import snapshot_download  # asks HF_ENDPOINT

    repository = HUB[name].repository if name in HUB else _repository(name)
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED))
    except Exception as error:  # it raises what its transport raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        where = f" at {endpoint}" if (endpoint := os.environ.get("HF_ENDPOINT")) else ""
        raise ThawlineError(
            f"cannot get {repository} from the hub{where} ({reason}); set HF_ENDPOINT to one that "
            f"can be reached, or copy its folder here and name it in embed.weights.{name}"
        ) from None


def digest(folder: Path) -> str:
    """One sha256 for a folder: of its configuration, weights and all that makes its tokenizer.

    Raises `ThawlineError` when one of these is missing.
    """
    return files.sha256_json({name: files.sha256_file(folder / name) for name in needed(folder)})


def needed(folder: Path, source: str = "") -> list[str]:
    """The files that make up an encoder; `source`: where they are from, for messages.

    Raises `ThawlineError` when one is missing.
    """
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    tokenizer = {path.name for pattern in TOKENIZER for path in folder.glob(pattern)}
    if not any(fnmatch(name, pattern) for name in tokenizer for pattern in VOCABULARIES):
        missing.append(f"{VOCABULARY} or other vocabulary")
    if missing:
        # Of the hub's only what is wanted was fetched, so there it cannot be seen.
        pickled = TENSORS in missing and (source or (folder / "pytorch_model.bin").is_file())
        raise ThawlineError(
            f"{source or folder.name} is no folder of an encoder: it has no "
            f"{' and no '.join(missing)}{PICKLED if pickled else ''}"
        )
    return sorted({CONFIG, TENSORS, *tokenizer})


def _local(name: str, file: WeightsFile, root: Path) -> Pretrained:
    path, where = root / file.file, f"embed.weights.{name}"
    if not path.exists():
        raise ThawlineError(f"{where}: there is no {file.file}")
    found = digest(path) if path.is_dir() else files.sha256_file(path)
    if found != file.sha256:
        raise ThawlineError(
            f"{where}: {file.file} has sha256 {found}, not the expected {file.sha256}: it is "
            "another or a damaged one; get it again, or correct the sha256 if it is meant"
        )
    if path.is_dir():
        return _read(path, f"local folder {path.name}", UNKNOWN, UNKNOWN)
    start = starts.read(path)
    if start is None:
        raise ThawlineError(
            f"{where}: {file.file} is one file; name the folder that also has {CONFIG} and "
            f"{VOCABULARY}"
        )
    if start.backbone != name:
        raise ThawlineError(
            f"{where}: {start.source} is a {start.backbone}, not a {name}; list {start.backbone} "
            "in embed.backbones, and these weights under that name"
        )
    return _started(path, start, found)


def _started(path: Path, start: Start, sha256: str) -> Pretrained:
    """A packaged model, whose own head comes with it."""
    state = load_file(path)
    head = {key: value for key, value in state.items() if key.startswith(f"{encoders.HEAD}.")}
    inner = encoders.bare(start.config)
    body = {key: value for key, value in state.items() if key not in head}
    lost = inner.load_state_dict(body, strict=False)
    if lost.unexpected_keys:
        raise ThawlineError(f"{path.name} does not fit its own description; take the model again")
    return Pretrained(
        inner, start.vocabulary, sha256, start.source, start.licence, start.pretraining, start, head
    )


def _read(folder: Path, source: str, licence: str, pretraining: str) -> Pretrained:
    """A folder as transformers writes it. Raises `ThawlineError` for one that does not fit."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is wrong is said here
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    needed(folder, source)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        vocabulary = _vocabulary(folder)
        known = tokens.tokenizer(vocabulary).get_vocab()
    except Exception as error:  # tokenizers raises no kind of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ThawlineError(f"{source} cannot be read: {reason}") from error
    if not isinstance(config, dict):
        raise ThawlineError(f"{source} cannot be read: its {CONFIG} holds no settings by name")
    if str(config.get("model_type")) not in encoders.LAYERS:
        raise ThawlineError(
            f"{source} is of type {config.get('model_type')}, which is not known; choose one of: "
            f"{', '.join(encoders.LAYERS)}"
        )
    try:
        model, told = AutoModel.from_pretrained(
            folder,
            attn_implementation="sdpa",
            dtype=torch.float32,  # not that of the file
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are told, and refused below
            output_loading_info=True,
        )
    except Exception as error:  # a wrong configuration may raise anything, at any depth
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise ThawlineError(f"{source} cannot be read: {reason}") from error
    missing = sorted(key for key in told["missing_keys"] if not key.startswith("pooler."))
    if missing or told["mismatched_keys"]:
        wrong = missing or sorted(str(key) for key in told["mismatched_keys"])
        raise ThawlineError(f"{source}: its weights do not fit its {CONFIG} ({wrong[0]} …)")
    rows = model.get_input_embeddings().num_embeddings
    if (most := max(known.values(), default=0)) >= rows:
        raise ThawlineError(
            f"{source}: its tokenizer has ids up to {most}, its weights know {rows} tokens: take "
            "the tokenizer that the encoder was trained with"
        )
    return Pretrained(model, vocabulary, digest(folder), source, licence, pretraining)


def _vocabulary(folder: Path) -> str:
    path = folder / VOCABULARY
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from transformers import AutoTokenizer  # makes one of the older files

    made: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text: str = made.backend_tokenizer.to_str()
    return text


def _catalogued() -> list[str]:
    known = catalogue.known_weights()
    return [name for name, entry in known.items() if entry.problem == "text_classification"]


def _repository(name: str) -> str:
    return name.replace("--", "/", 1)

"""A warm start: a training that goes on from the champion's weights, not from the pretrained ones.

`warm_start.yaml` names the version; `thawline retrain` writes it before it runs the stages, and DVC
sees it as a parameter. Backbone, thaw plan, recipe and classes stay those of the champion, so that
what is new is the data alone: fewer passes are enough then, and no race of backbones is run again.
The weights come from the registry, under the digest that the file names.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import files, params, params_file
from tasks.changes import Changes
from tasks.errors import ThawlineError
from tasks.ledger import CHAMPION, KEPT, MOVES, ROLLBACK, WAITING, Entry
from tasks.params import Params, TrainParams
from tasks.records import DataSummary, Project

log = logging.getLogger(__name__)

FILE = "warm_start.yaml"
KEY = "warm_start"  # in `model.json` and in the evidence of an entry: what was gone on from
HEADER = """\
# The registered version whose weights training goes on from, by `thawline retrain` (retrain.start);
# null: it starts from the pretrained backbone. `thawline retrain --cold` says null again.
"""
EPOCHS, RATE = 0.5, 0.5  # of those in `train`, for a network that has learned most of it
LEAST = 4  # epochs of which half is still worth it: with two, as texts have, it does worse
MOST = 0.34  # share of added examples up to which that was tried
# What makes no other model of the same data; all else must be the champion's.
_APART: dict[str, Any] = {
    **dict.fromkeys(("threads", "device", "retention", "evaluate"), True),
    **dict.fromkeys(("package", "register_", "promote", "retrain"), True),
    "prepare": {"data", "max_unreadable"},
    "embed": {"batch_size"},
    "freeze": {"cache", "cache_gigabytes"},
    "train": params.NEVER_CHANGES_A_RESULT,
}
_ALONE = ("multi_layer_head", "auto")  # strategies whose plan may be another for other data


@dataclass(frozen=True)
class WarmStart:
    """The version to go on from."""

    model: str  # registered
    version: int
    digest: str  # of the packaged model
    backbone: str
    recipe: str  # digest of the parameters that it was decided for
    data: str  # and `DataSummary.digest` of the data

    def __str__(self) -> str:
        return f"{self.model} version {self.version}"

    def settings(self, train: TrainParams) -> TrainParams:
        """Those of the training that goes on: fewer epochs, at a lower rate."""
        rate = train.learning_rate if train.learning_rate == "auto" else RATE * train.learning_rate
        epochs = math.ceil(EPOCHS * train.epochs)
        return train.model_copy(update={"epochs": epochs, "learning_rate": rate})

    def told(self, train: TrainParams) -> dict[str, Any]:
        """For the record of a training with such settings."""
        version = {"model": self.model, "version": self.version, "digest": self.digest}
        return {**version, "epochs": train.epochs, "learning_rate": train.learning_rate}

    def weights(self, project: Project) -> Path:
        """Its file of weights, from the registry.

        Raises `ThawlineError` when the version is not there, or not the model that is meant.
        """
        from tasks import packaged, predict
        from tasks.tracking import store

        cure = "start from the pretrained backbone with: thawline retrain --cold --force"
        try:
            with store.connect(project.root) as client:
                folder = predict.packaged_copy(client, self.model, self.version)
        except ThawlineError as error:
            raise ThawlineError(f"{error}; {FILE} names it to go on from: {cure}") from None
        if packaged.verify(folder) != self.digest:
            raise ThawlineError(f"{self} is not the model that {FILE} means; {cure}")
        return folder / "model.safetensors"


def recipe(of: Params) -> str:
    """A digest of the parameters that make a model what it is, but for its data."""
    return files.sha256_json(of.model_dump(exclude=_APART, mode="json"))[:16]


def of(project: Project, now: Params) -> WarmStart | None:
    """What a training goes on from; None: from nothing, or it was decided for something else.

    Other data may lack what the champion knows, other parameters want another network.
    """
    path = project.root / FILE
    start = parsed(path.read_bytes(), str(path)) if path.is_file() else None
    if start is None:
        return None
    if (start.recipe, start.data) == (recipe(now), DataSummary.read(project.summary).digest):
        return start
    log.warning("%s is for other data or parameters: it starts from the pretrained backbone", FILE)
    return None


def parsed(data: bytes, where: str = FILE) -> WarmStart | None:
    """What such a file says; raises `ThawlineError` where it is not one."""
    try:
        found: dict[str, Any] | None = params_file.parse(data, where)["start"]
        return None if found is None else WarmStart(**found)
    except (ThawlineError, KeyError, TypeError):
        raise ThawlineError(
            f"{where} is not what thawline retrain wrote; delete it and run again"
        ) from None


def ensure(root: Path, now: Params) -> None:
    """Write null where there is no file, or its start was for other parameters: before DVC looks,
    which knows the parameters of each stage alone."""
    path = root / FILE
    start = parsed(path.read_bytes(), str(path)) if path.is_file() else None
    if start is None or start.recipe != recipe(now):
        write(root, None)


def write(root: Path, start: WarmStart | None) -> None:
    """Write the file, where it says something else."""
    values = asdict(start) if start else {}
    # Quoted as in JSON: a digest may look like a number.
    lines = [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    text = HEADER + "\n".join(["start:" if start else "start: null", *lines]) + "\n"
    path = root / FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with files.atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def why_not(
    now: Params,
    then: Params | None,
    found: Changes,
    backbone: str | None,
    entries: Sequence[Entry],
    went_on: bool = False,
) -> str:
    """Why a training should start from the pretrained backbone, as a clause; empty: it need not.

    `then`: the parameters that the champion was made with, None: not known; `backbone`: its own;
    `went_on`: it is from a warm start itself, and one after the other loses what each saves.
    A champion knows all that it has seen: it may not be gone on from where an example that it
    learned is now held out, was taken away, or has another label.
    """
    if now.retrain.start == "pretrained":
        return "retrain.start is pretrained"
    if then is None:
        return "the parameters that the champion was made with are not known"
    ours, theirs = (x.model_dump(exclude=_APART, mode="json") for x in (now, then))
    if changed := [name for name in ours if ours[name] != theirs[name]]:
        return f"other parameters than the champion's in {', '.join(changed)}"
    if backbone not in now.embed.backbones:
        return "the champion's backbone is not among embed.backbones"
    if now.freeze.strategy in _ALONE or params.epochs_before_the_last_phase(now.freeze):
        return f"freeze.strategy {now.freeze.strategy!r} goes through phases of its own"
    if now.train.epochs < LEAST:
        return f"train.epochs is {now.train.epochs}, of which half would be too few"
    if now.tune.searches:
        return "a search (tune.trials, tune.minutes) tries what starts from the pretrained backbone"
    if now.repeat.folds or now.repeat.seeds > 1:
        return "repeat trains from the pretrained backbone, and would judge another recipe"
    return _why_not_on(found) or _why_not_from(entries, went_on)


def _why_not_on(found: Changes) -> str:
    """What of the data speaks against it."""
    if found.new_classes or found.lost_classes:
        return "the classes are others"
    if held_out := found.found["moved"] + found.test["from_training"]:
        return f"the champion may know what is held out now ({held_out:,} moved)"
    gone = [f"{found.to_learn[k]:,} {k}" for k in ("removed", "relabelled") if found.to_learn[k]]
    if gone:
        return f"the champion still knows what is wrong or gone now ({', '.join(gone)})"
    if not found.to_learn["added"]:
        return "there is nothing new to learn"
    if found.share > MOST:
        return f"{found.share:.0%} of the examples were added, more than a third"
    return ""


def _why_not_from(entries: Sequence[Entry], went_on: bool) -> str:
    """What of the champion's own story does."""
    if went_on:
        return "the champion went on from another itself, and twice in a row does worse"
    if _refused(entries):
        return "the last model that went on from this champion did not take its place"
    return ""


def _refused(entries: Sequence[Entry]) -> bool:
    """Whether the newest challenger of the champion of now went on from it, and was kept out; or
    the champion was brought back, whatever had taken its place."""
    for entry in reversed(entries):
        if entry.alias != CHAMPION:
            continue
        if entry.kind in MOVES:
            return entry.kind == ROLLBACK
        if entry.kind in (KEPT, WAITING) and entry.evidence.get("challenger"):
            return KEY in entry.evidence
    return False

"""Fine-tuning of a whole encoder by transformers' Trainer.

A process of its own: python -m benchmarks.arms.transformers_arm TEXTS OUT SEED SETTINGS
Settings (JSON): epochs, learning_rate, precision, max_tokens, weights (a folder), threads.

What its documentation shows: AutoModelForSequenceClassification, linear decay after a tenth of
warm-up, batches of like lengths padded to their longest, the state of the best epoch kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from benchmarks.arms.measured import Clock, Measured, judged

SPLITS = ("train", "validation", "test")
BATCH = 32
WARM_UP = 0.1
WEIGHT_DECAY = 0.01


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Token ids and targets of one split."""

    def __init__(self, encoded: Any, targets: Any) -> None:
        self.encoded, self.targets = encoded, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = self.encoded[row]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": self.targets[row]}


def main(folder: Path, out: Path, seed: int, settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(settings["weights"], local_files_only=True)
    given = {split: json.loads((folder / f"{split}.json").read_text()) for split in SPLITS}
    rows = {
        split: Rows(
            tokenizer(x["texts"], truncation=True, max_length=settings["max_tokens"])["input_ids"],
            x["targets"],
        )
        for split, x in given.items()
        if split != "test"
    }
    classes = 1 + max(given["train"]["targets"])
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        settings["weights"], num_labels=classes, local_files_only=True
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(model, tokenizer, rows, Path(scratch), seed, settings)
        trainer.train()
        seconds, cpu = clock.read()
        trainer.args.train_sampling_strategy = "random"  # the other would shuffle predictions too
        test = tokenizer(
            given["test"]["texts"], truncation=True, max_length=settings["max_tokens"]
        )["input_ids"]
        rows["test"] = Rows(test, given["test"]["targets"])
        logits, targets = {}, {}
        for split in ("validation", "test"):
            said = trainer.predict(rows[split])
            logits[split], targets[split] = np.asarray(said.predictions), np.asarray(said.label_ids)
            assert targets[split].tolist() == given[split]["targets"]  # in their order
    found, right = judged(logits, targets)
    notes = {"steps": trainer.state.global_step}
    Measured(**found, seconds=seconds, cpu_seconds=cpu, notes=notes).write(out, right)


def _trainer(
    model: Any,
    tokenizer: Any,
    rows: dict[str, Rows],
    scratch: Path,
    seed: int,
    settings: dict[str, Any],
) -> Trainer:
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(scratch),
            seed=seed,
            num_train_epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=2 * BATCH,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=WARM_UP,
            bf16=settings["precision"] == "bfloat16",
            use_cpu=True,
            train_sampling_strategy="group_by_length",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_only_model=True,
            load_best_model_at_end=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))

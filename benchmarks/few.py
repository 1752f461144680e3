"""Few labelled texts: 8 and 64 of each class, several draws, the same test texts for all.

    .venv/bin/python -m benchmarks.few --threads 1 --jobs 2      # 40 minutes on 2 cores
    .venv/bin/python -m benchmarks.few --threads 1 --jobs 2 --each 8 16 32 64 128 256
    .venv/bin/python -m benchmarks.few --quick                   # 3 minutes

By default what is compared is reported; the second line asks from how many texts a class on which
recipe is the best, which is what `FEW_EACH` of texts (tasks/problems/text_classification) decides.

Movie snippets, 2,000 of them as test, MiniLM for all but TF-IDF. A draw is a choice of training
texts, of which 15 % are validation: too few to tune with, so settings are fixed; the Trainer's are
those that its users take for so little data. Intervals resample test texts and draws. Finished runs
are kept as in benchmarks/texts.py. Writes few.json and few.md into benchmarks/results (--quick:
into --work).
"""

from __future__ import annotations

from typing import Any

from benchmarks import peers_report
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Interval, Summary
from benchmarks.results_file import Results
from benchmarks.texts import MAX_TOKENS, Draw, make
from tasks import recipes

EACH = (8, 64)  # labelled texts a class
PROBLEM = "text_classification"
CLASSES = 2
TESTED = 2_000
TRAINER = {"max_tokens": MAX_TOKENS, "precision": "float32", "learning_rate": 5e-5}
FEWEST, EPOCHS = 32, (50, 20)  # of the Trainer, for fewer texts a class than that and for others
RECIPES = ("few_shot", "contrastive", "small_data")


def arms(each: int) -> list[Arm]:
    epochs = EPOCHS[each >= FEWEST]
    return [
        *(Arm(f"Thawline, {name}", "thawline", recipes.values(name, PROBLEM)) for name in RECIPES),
        Arm("transformers, everything", "transformers", {**TRAINER, "epochs": epochs}),
        Arm("TF-IDF", "counted", {}),
    ]


def main() -> None:
    parser = benchmark_parser("few", __doc__, seeds=5)
    parser.add_argument("--each", nargs="+", type=int, default=EACH, help="texts of each class")
    options = parsed(parser)
    results = Results("few", "Few labelled texts", options.results)
    runner = Runner.of(options, jobs=options.jobs)
    values: dict[str, Any] = {}
    lines: list[str] = []
    for each in options.each[: 1 if options.quick else None]:
        found: dict[str, list[Run]] = {arm.label: [] for arm in arms(each)}
        for number in range(options.seeds):
            draw = Draw(f"few_{each}_{number}", CLASSES * each, TESTED, number, each)
            data = make("movie_snippets", options.work, draw)
            for run in runner.runs(data, [(arm, number) for arm in arms(each)], f"draw {number}"):
                found[run.arm.label].append(run)
        summaries = [Summary(runs) for runs in found.values()]
        values[str(each)] = compared(summaries)
        lines += [f"## {each} of each class", "", *table(values[str(each)]), ""]
    results.write({"each": values}, lines)


def compared(summaries: list[Summary]) -> dict[str, Any]:
    trainer = next(s for s in summaries if s.kind == "transformers")
    return {
        summary.label: {
            "settings": summary.runs[0].arm.settings,
            "test_accuracy": peers_report.interval(summary.hits).__dict__,
            "against_trainer": peers_report.interval(summary.hits, trainer.hits).__dict__,
            "cpu_seconds": summary.median("cpu_seconds"),
            "runs": [run.record for run in summary.runs],
        }
        for summary in summaries
    }


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| arm | test accuracy % (95 %) | points above the Trainer (95 %) | CPU s |",
        "|---|---|---|---|",
    ]
    for label, row in found.items():
        lines.append(
            f"| {label} | {Interval(**row['test_accuracy'])} | "
            f"{Interval(**row['against_trainer'])} | {row['cpu_seconds']:.1f} |"
        )
    return lines


if __name__ == "__main__":
    main()

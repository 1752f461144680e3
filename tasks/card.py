"""The model card: a packaged model's record in words."""

from __future__ import annotations

from typing import Any

from tasks import baselines, labelling, packaged, problems

_FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}
_OF_SEVERAL = {
    "accuracy": "accuracy: all labels right",
    "balanced_accuracy": "mean recall of the labels",
    "micro_f1": "micro F1",
    "hamming_accuracy": "single decisions that are right (1 − Hamming loss)",
}


def text(record: dict[str, Any], looks: int | None = None) -> str:
    """Markdown; the same for the same `model.json` and number of `looks` at the test split.

    That is no part of the record: how many models were judged before it makes no other model.
    """
    sections = {
        "Use": _use(record),
        "Results": _results(record) + _by_slice(record["judged"]["slices"]) + _looked(looks),
        "Data": _data(record),
        "How it was made": _making(record),
        "Limits": _limits(record),
        "Lineage": _lineage(record),
    }
    title = (
        record["description"]
        or f"{len(record['classes'])} {_classes(record)} of {_problem(record).WORDS.many}"
    )
    body = "\n".join(f"## {name}\n\n{content}\n" for name, content in sections.items())
    return f"# {title}\n\n{_tell(record)}\n\n{body}"


def _problem(record: dict[str, Any]) -> problems.Problem:
    return problems.load(record["problem"])


def _classes(record: dict[str, Any]) -> str:
    return "labels" if packaged.several(record) else "classes"


def _tell(record: dict[str, Any]) -> str:
    problem = record["problem"].replace("_", " ")
    return (
        f"A model for {problem}: `{record['backbone']}` with a new head, fine-tuned with Thawline "
        f"by the strategy `{record['thaw']['strategy']}`."
    )


def _use(record: dict[str, Any]) -> str:
    classes, problem = record["classes"], _problem(record)
    argument, plain = problem.usage(record)
    shown = ", ".join(classes[:50]) + (f" … ({len(classes)} in all)" if len(classes) > 50 else "")
    several = packaged.several(record)
    some = "any number of these labels, also none," if several else "one of these labels"
    return f"""\
It gives {some} to a {problem.WORDS.thing}, with calibrated probabilities: {shown}.

```python
from tasks.problems.{record["problem"]}.predictor import Predictor

model = Predictor("models")  # this folder; its digests are checked
print(model.predict({argument}))  # label, probability, error, one column p_<class> a class
```
{_of_several(record)}
{plain}`model.json` says the rest: inputs, classes, temperature."""


def _of_several(record: dict[str, Any]) -> str:
    if not packaged.several(record):
        return ""
    return f"""
`label` holds all labels that are likelier than not, with `{labelling.BETWEEN}` between them, or \
`{labelling.NONE}`; each `p_<class>` is a probability of its own; `probability` is that of the \
whole answer, a product of these. An answer is right when all of it is.
"""


def _results(record: dict[str, Any]) -> str:
    metrics: dict[str, float] = record["metrics"]
    names = _FIGURES | (_OF_SEVERAL if packaged.several(record) else {})
    lines = ["| on the test split | value | interval |", "|---|---|---|"]
    for key, name in names.items():
        if (value := metrics.get(f"test.{key}")) is None:
            continue
        ends = [metrics.get(f"test.{key}_{end}") for end in ("low", "high")]
        interval = "" if None in ends else f"{ends[0]:.3f}–{ends[1]:.3f}"
        lines.append(f"| {name} | {value:.3f} | {interval} |")
    for name, value in baselines.accuracies(metrics).items():
        lines.append(f"| accuracy of the baseline: {baselines.called(name)} | {value:.3f} | |")
    if (ece := metrics.get("test.ece")) is not None:
        lines.append(f"| calibration error (ECE) | {ece:.3f} | |")
    return "\n".join(lines)


def _by_slice(slices: list[dict[str, Any]]) -> str:
    if not slices:
        return ""
    lines = ["", "", "| slice | examples | accuracy | interval |", "|---|---|---|---|"]
    for row in slices:
        name = str(row["value"]).replace("|", "\\|")
        value, low, high = (row["accuracy"][key] for key in ("value", "low", "high"))
        lines.append(
            f"| {row['column']} = {name} | {row['examples']:,} | {value:.3f} | "
            f"{low:.3f}–{high:.3f} |"
        )
    return "\n".join(lines)


def _looked(looks: int | None) -> str:
    if looks is None:
        return ""
    if looks < 2:
        return "\n\nNo other model had been judged on this test split where it was made."
    return (
        f"\n\nWith it, {looks:,} models had been judged on this test split where it was made; the "
        "best of so many looks better than it is."
    )


def _data(record: dict[str, Any]) -> str:
    data = record["data"]
    counts = ", ".join(f"{n:,} {split}" for split, n in data["examples"].items())
    given = " and ".join(data["given_splits"])
    origin = f"The {given} split came with it." if given else "Splits were assigned by hash."
    licence = data["licence"] or "not stated; it is that of its source"
    leaks = (
        f"No example of one split is in another (certificate `{data['certificate']}`)."
        if data["certificate"]
        else "That no split leaks into another is not certified."
    )
    many = _problem(record).WORDS.many
    return (
        f"{data['name']}; licence: {licence}. Examples: {counts}. {origin} {data['unreadable']} "
        f"{many} could not be read and were left out. {leaks} Labels that are probably wrong: "
        f"{data['label_errors']:,} of {data['inspected']:,} that were looked at, none of them for "
        "testing."
    )


def _making(record: dict[str, Any]) -> str:
    weights, thaw = record["weights"], record["thaw"]
    phases = "\n".join(
        f"- phase `{phase['name']}` ({phase['epochs'] or 'the remaining'} epochs): layers that "
        f"learn: {len(phase['learning_rates'])}"
        for phase in thaw["phases"]
    )
    if reading := record.get("reading"):
        phases += (
            f"\n- the head reads {reading['kept']:,} of the {reading['width']:,} pooled features "
            f"of {len(reading['layers'])} layers, chosen on the training split"
        )
    if start := record.get("warm_start"):
        phases += (
            f"\n- training did not begin there, but went on from {start['model']} version "
            f"{start['version']} (model `{start['digest']}`), since when examples were only added"
        )
    return f"""\
- starting weights: {weights["pretraining"]}; licence {weights["licence"]}; \
{weights["source"]}; sha256 `{weights["sha256"]}`
- thaw line: `{thaw["thaw_line"]}`; {thaw["frozen_share"]:.0%} of the forward compute lies below \
it and was proved not to have moved (digests in `run.json`)
{phases}
- temperature of the probabilities: {record["temperature"]:.3f}, fitted on the validation split
- cost of the training: {record["cost"]["epochs"]} epochs, about \
{record["cost"]["multiply_adds"]:.3g} multiply-adds"""


def _limits(record: dict[str, Any]) -> str:
    metrics, words = record["metrics"], _problem(record).WORDS
    answers = "may answer with some" if packaged.several(record) else "always answers with one"
    lines = [
        f"- It {answers} of its classes, also to a {words.thing} of something else.",
        f"- The figures hold for {words.things} like those of the test split.",
    ]
    worst, drift = record["judged"]["worst"], record["judged"]["drift"]
    if worst is not None:
        lines.append(
            f"- It is right least often where {worst['column']} is {worst['value']}: on "
            f"{worst['accuracy']['value']:.1%} of {worst['examples']:,}"
            + (", worse than elsewhere beyond chance." if worst["worse"] else ".")
        )
    if drift["differs"]:
        name = record["classes"][drift["target"]]
        lines.append(f"- Validation and test data differ, most in what it takes for {name}.")
    for name, other in baselines.accuracies(metrics).items():
        verdict = record["judged"]["baselines"][name]  # on the model
        if verdict == "better":
            continue
        told = f"{baselines.called(name)}, {other:.3f} against {metrics['test.accuracy']:.3f}"
        if verdict == "worse":
            lines.append(f"- A cheap baseline does better: {told}.")
        else:
            lines.append(f"- It is not clearly better than a cheap baseline: {told}.")
    return "\n".join(lines)


def _lineage(record: dict[str, Any]) -> str:
    return (
        f"Data `{record['data']['digest']}` → backbone `{record['weights']['sha256']}` → this "
        "model. The registered version carries the git commit and the DVC hashes as tags."
    )

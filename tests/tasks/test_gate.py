"""The gate: pairs whose truth is known, and each rule on evidence that breaks it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import gate as simulation
from benchmarks.gate import RULES, Truth, evidence
from tasks import gate, paired
from tasks.errors import DataError
from tasks.gate import Evidence, GateParams, Verdict, power
from tasks.gate.power import Claims
from tasks.paired import Pairs
from tasks.params import PromoteParams

CLASSES = np.array([f"class {i}" for i in range(10)], dtype=object)
CLAIMS = Claims(0.95, 0.005, 0.01)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rivals(gained: int, lost: int, count: int = 1000, **columns: Any) -> tuple[Evidence, Evidence]:
    """A challenger that alone has the first `gained` right, a champion that has the next `lost`."""
    ids = np.array([f"{i}" for i in range(count)], dtype=object)
    labels = CLASSES[np.arange(count) % len(CLASSES)]
    frame = pd.DataFrame({"id": ids, "group": ids, "label": labels, "probability": 0.95})
    frame = frame.assign(**columns)
    right = np.arange(count) < 0.95 * count
    ours, theirs = right.copy(), right.copy()
    theirs[:gained] = False
    ours[gained : gained + lost] = False
    wrong = CLASSES[(np.arange(count) + 1) % len(CLASSES)]
    named = (("challenger", ours), ("champion", theirs))
    made = [
        evidence(name, frame.assign(predicted=np.where(right, frame["label"], wrong)))
        for name, right in named
    ]
    return made[0], made[1]


def of(pair: tuple[Evidence, Evidence | None], **rules: Any) -> Verdict:
    return gate.judge(*pair, GateParams(**rules))


def failed(verdict: Verdict) -> list[str]:
    return [rule.name for rule in verdict.rules if rule.state == "failed"]


@pytest.mark.parametrize("size", [200, 1000])
@pytest.mark.parametrize("pairs", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_the_gate_keeps_its_word(size: int, pairs: int) -> None:
    """Errors of the first and the second kind, with the room that so few pairs leave."""
    truths, room = simulation.truths(size), 3 / np.sqrt(pairs)

    def found(name: str) -> dict[str, Any]:
        return simulation.simulated(truths[name], size, pairs, 0, generator(1))

    worse = found("-1")
    assert worse["promote"] <= 0.01 + room * 0.1
    assert worse["if_not_worse"] <= 0.01 + room * 0.1
    better = found("detected at 95 %")
    assert better["promote"] >= 0.95 - room * 0.22
    assert found("detectable")["keep"] <= 0.05


def test_undecided_pairs_are_decided_by_what_they_ask_for() -> None:
    """Of pairs whose gains are as usual, four in five, drawn as counts."""
    draw, decided = generator(2), []
    for gain in draw.normal(0, power.USUAL, 400):
        shares = [(0.1 + gain) / 2, (0.1 - gain) / 2, 0.9]
        seen = draw.multinomial(1000, np.clip(shares, 0, 1))
        pairs = Pairs(float(seen[0]), float(seen[1]), 1000)
        if is_decided(pairs):
            continue
        more = power.needed(pairs, CLAIMS)
        all_ = seen + draw.multinomial(more, np.clip(shares, 0, 1))
        decided.append(is_decided(Pairs(float(all_[0]), float(all_[1]), 1000 + more)))
    assert len(decided) > 100
    assert 0.7 < np.mean(decided) < 0.9


def is_decided(pairs: Pairs) -> bool:
    sure = paired.p_values(pairs.gained, pairs.lost) <= 0.025
    certain = paired.intervals([pairs], 0.98)[0, 0] > -CLAIMS.max_loss
    return bool(sure and certain) or bool(paired.intervals([pairs], 0.95)[0, 1] < CLAIMS.min_gain)


def test_three_verdicts_and_their_reasons() -> None:
    assert of(rivals(60, 20)).decision == "promote"
    doubt = of(rivals(30, 20))
    assert doubt.decision == "undecided" and doubt.needed and 1000 < doubt.needed < 20_000
    assert f"about {doubt.needed:,} more examples would decide" in doubt.sentence
    worse = of(rivals(20, 60))
    assert worse.decision == "keep" and "surely below the 0.5 points" in worse.sentence
    # A gain that is sure, and surely not worth it.
    assert failed(of(rivals(40, 10, 20_000))) == ["min_gain"]
    # Few examples and many different answers: better at 95 %, but it may lose a point.
    wild = of(rivals(62, 40, 110), max_loss=0.01)
    assert wild.rule("not_worse").state == "undecided"


def test_a_loss_that_is_no_chance_is_no_classs_to_pay() -> None:
    labels = np.array(["common"] * 900 + ["rare"] * 97 + ["odd"] * 3, dtype=object)[::-1]
    pair = rivals(0, 100, label=labels)  # 97 rare ones and 3 odd ones are lost
    champion = pair[1].predictions
    gaining = champion["predicted"].where(np.arange(1000) < 700, "nothing")
    pair = (pair[0], replace(pair[1], predictions=champion.assign(predicted=gaining)))
    verdict = of(pair, max_calibration_error=None)
    assert verdict.rule("better").state == "passed"
    assert failed(verdict) == ["classes"] and verdict.decision == "keep"
    assert "rare (−100.00)" in verdict.rule("classes").sentence
    rows = {row["name"]: row for row in verdict.rule("classes").numbers["worst"]}
    assert rows["odd"]["state"] == "passed"  # three examples prove nothing


def test_a_small_class_that_is_lost_among_many_is_not_passed_over() -> None:
    names = np.array([f"{i % 100}" for i in range(1000)], dtype=object)
    champion, challenger = rivals(0, 0, label=names)
    before = np.where((np.arange(1000) < 700) | (names == "7"), names, "nothing")
    after = np.where(names == "7", "nothing", names)
    pair = (
        replace(challenger, predictions=champion.predictions.assign(predicted=after)),
        replace(champion, predictions=champion.predictions.assign(predicted=before)),
    )
    verdict = of(pair, max_calibration_error=None)
    rule = verdict.rule("classes")  # 10 of 10 are lost: by chance in 1 of 10 such cases
    assert rule.state == "undecided" and "7 (−" in rule.sentence
    assert verdict.decision == "undecided" and verdict.needed is None
    assert verdict.sentence.startswith("Undecided. More than ")
    assert verdict.action(PromoteParams(when_undecided="promote_if_not_worse")) == "keep"


def test_many_small_classes_do_not_make_noise_decide() -> None:
    names = np.array([f"{i % 200}" for i in range(2000)], dtype=object)
    refused = 0
    for seed in range(60):
        steps = generator(seed).permutation(np.repeat([1, -1, 0], [120, 60, 1820]))
        frame = pd.DataFrame({"id": np.arange(2000).astype(str), "label": names})
        frame = frame.assign(group=frame["id"], probability=0.95)
        ours = frame.assign(predicted=np.where(steps >= 0, names, "x"))
        theirs = frame.assign(predicted=np.where(steps <= 0, names, "x"))
        refused += "classes" in failed(of((evidence("a", ours), evidence("b", theirs))))
    assert refused <= 0.05 * 60 + 3 * np.sqrt(0.05 * 0.95 * 60)


def test_a_slice_does_not_pay_either() -> None:
    site = np.where(np.arange(1000) < 80, "north", "south").astype(object)
    pair = rivals(0, 40, **{"column.site": site})
    better = pair[1].predictions["predicted"].where(np.arange(1000) < 800, "nothing")
    champion = replace(pair[1], predictions=pair[1].predictions.assign(predicted=better))
    assert "slices" in failed(of((pair[0], champion)))
    assert of(rivals(60, 20)).rule("slices").state == "skipped"


def test_each_limit_refuses_alone() -> None:
    pair = rivals(60, 20)
    loaded = pair[0].loaded
    assert loaded is not None
    cases: list[tuple[list[str], dict[str, Any], dict[str, Any]]] = [
        (["retention"], {"retention_drop": 0.03}, {"max_drop": 0.02}),
        (["retention"], {}, {"max_drop": 0.02}),  # a budget, and nothing is known
        (["latency"], {"loaded": replace(loaded, milliseconds=12.0)}, {"max_latency_ms": 10}),
        (["size"], {"loaded": replace(loaded, megabytes=12.0)}, {"max_megabytes": 10}),
        (["certificate"], {"certificate": None}, {}),
        (["certificate"], {"data": "other"}, {}),
        (["certificate"], {"certificate": {"data": "data", "holds": True, "sha256": "0"}}, {}),
        (["digest"], {"loaded": replace(loaded, digest="other")}, {}),
        (["digest", "loads"], {"loaded": None}, {}),
        (["digest", "loads"], {"loaded": replace(loaded, error="no")}, {}),
        (["loads"], {"loaded": replace(loaded, probabilities={"0": 0.5})}, {}),
        (["another"], {"digest": "champion", "loaded": replace(loaded, digest="champion")}, {}),
        (
            ["calibration"],
            {"predictions": pair[0].predictions.assign(probability=0.7)},
            {"max_calibration_error": 0.1},
        ),
    ]
    for names, changes, rules in cases:
        changed = replace(pair[0], **changes)
        if "predictions" in changes:
            changed = replace(changed, loaded=replace(loaded, probabilities={"0": 0.7}))
        verdict = of((changed, pair[1]), **rules)
        assert failed(verdict) == names and verdict.decision == "keep", names
    free = of((replace(pair[0], certificate=None), pair[1]), require_certificate=False)
    assert free.decision == "promote"


def test_chance_is_no_calibration_error() -> None:
    found = []
    for seed in range(40):
        frame, other = Truth(0, 0.2, together=1 + seed % 2 * 3).frames(60, generator(seed))
        verdict = of((evidence("a", frame), evidence("b", other)), max_calibration_error=0.01)
        found.append("calibration" in failed(verdict))
        assert verdict.rule("calibration").numbers["value"] > 0.03  # what a fixed limit would see
    assert np.mean(found) <= 0.05


def test_without_a_champion_the_commonest_class_is_to_beat() -> None:
    first = of((rivals(60, 20)[0], None))
    assert first.decision == "promote" and first.champion is None
    assert "against the commonest class" in first.sentence
    assert first.rule("classes").state == "skipped"  # that class loses against always saying it
    frame = rivals(0, 0)[0].predictions
    guess = evidence("a", frame.assign(predicted=CLASSES[0]))
    assert failed(of((guess, None), max_calibration_error=None)) == ["min_gain"]


def test_small_test_sets_are_judged_by_folds() -> None:
    ours, theirs = rivals(30, 4, 150)
    tested = [each.predictions.iloc[:40] for each in (ours, theirs)]
    small = [replace(each, predictions=x) for each, x in zip((ours, theirs), tested, strict=True)]
    fold = np.arange(150) % 5
    folded = [
        replace(each, folds=whole.predictions.assign(fold=fold))
        for each, whole in zip(small, (ours, theirs), strict=True)
    ]
    found = of((folded[0], folded[1]))
    numbers = found.rule("better").numbers
    assert numbers["examples"] == 150 and "150 cross-validated" in found.rule("better").sentence
    assert numbers["independent"] == pytest.approx(150 / 2.25)  # 5 folds share training data
    assert of((folded[0], small[1])).rule("better").numbers["examples"] == 40
    assert of((folded[0], folded[1]), folds_below=40).rule("better").numbers["examples"] == 40
    # What was tested itself has a say: a recipe is better, but this model is broken.
    broken = folded[0].predictions.assign(predicted="nothing")
    assert "min_gain" in failed(of((replace(folded[0], predictions=broken), folded[1])))


def folded(pair: tuple[Evidence, Evidence], tested: int) -> tuple[Evidence, Evidence]:
    """Tested on the first few examples alone, and cross-validated on all."""
    ours, theirs = (
        replace(
            each,
            predictions=each.predictions.iloc[:tested],
            folds=each.predictions.assign(fold=np.arange(len(each.predictions)) % 5),
        )
        for each in pair
    )
    return ours, theirs


def test_folds_are_judged_where_both_have_the_example_under_one_label() -> None:
    """Data that has grown, shrunk and been relabelled since has folds of its own."""
    ours, theirs = folded(rivals(30, 4, 150), 40)
    assert ours.folds is not None and theirs.folds is not None
    relabelled = ours.folds.assign(label=ours.folds["label"].where(np.arange(150) != 100, "x"))
    added = relabelled.iloc[:5].assign(id=["a", "b", "c", "d", "e"], group="new")
    data = pd.concat([relabelled, added], ignore_index=True)
    found = of((replace(ours, folds=data), replace(theirs, folds=theirs.folds.iloc[:140])))
    numbers = found.rule("better").numbers
    assert numbers["examples"] == 139 and numbers["only_challenger_right"] == 30
    assert "on 139 cross-validated ones, " in found.rule("better").sentence
    # Of all labels others, or of no example shared, the test set alone.
    for other in (data.assign(label="x"), data.assign(id="x")):
        alone = of((replace(ours, folds=other), theirs)).rule("better")
        assert alone.numbers["examples"] == 40 and "40 test examples" in alone.sentence


def test_what_is_in_no_fold_of_the_champion_still_counts() -> None:
    """By folds on the old data nobody is better; on what has come since the challenger is."""
    ours, theirs = folded(rivals(2, 2, 150), 40)
    newer = [each.predictions.iloc[:30] for each in rivals(30, 0, 1000)]
    newer = [each.assign(id="new " + each["id"], group="new " + each["id"]) for each in newer]
    told = of(
        (
            replace(
                ours,
                predictions=pd.concat(
                    [ours.predictions.assign(newest=False), newer[0].assign(newest=True)]
                ),
            ),
            replace(theirs, predictions=pd.concat([theirs.predictions, newer[1]])),
        ),
        folds_below=1000,
    ).rule("better")
    assert told.numbers["examples"] == 180 and told.state == "passed"
    assert "150 cross-validated ones and 30 newer test examples" in told.sentence


def test_recipes_that_are_equally_good_are_not_told_apart_by_folds() -> None:
    found = simulation.cross_validated(100, generator(3))
    assert found["promote"] <= 0.025 + 3 * np.sqrt(0.025 / 100)


def test_only_shared_examples_with_the_same_labels_are_judged() -> None:
    ours, theirs = rivals(60, 20)
    shuffled = theirs.predictions.iloc[::-1].iloc[:990]
    fewer = of((ours, replace(theirs, predictions=shuffled)))
    assert fewer.rule("same_test").numbers == {"examples": 990, "left_out": 10, "newest": 0}
    same = of((ours, replace(theirs, predictions=theirs.predictions.iloc[::-1])))
    assert same.rule("better") == of((ours, theirs)).rule("better")
    with pytest.raises(DataError, match=r"different labels \(1000 of 1000"):
        of((ours, replace(theirs, predictions=theirs.predictions.assign(label="x"))))
    with pytest.raises(DataError, match="different examples"):
        of((ours, replace(theirs, predictions=theirs.predictions.assign(id="x"))))


def with_newer(frozen: tuple[int, int], newest: tuple[int, int], count: int = 3000) -> Verdict:
    """So many gained and lost on the champion's own test set, and on 500 newer examples."""
    pairs = [rivals(*frozen, count), rivals(*newest, 500)]
    new = [[each.predictions for each in pair] for pair in pairs]
    for frame in new[1]:
        frame["id"] = frame["group"] = "new " + frame["id"]
    ours, theirs = (pd.concat(frames, ignore_index=True) for frames in zip(*new, strict=True))
    ours["newest"] = np.arange(len(ours)) >= count
    challenger, champion = pairs[0]
    return of((replace(challenger, predictions=ours), replace(champion, predictions=theirs)))


def test_damaged_new_data_cannot_buy_a_loss_on_the_champions_test_set() -> None:
    sure, may = with_newer((20, 60), (150, 0)), with_newer((20, 35), (150, 0), 1000)
    assert sure.rule("better").state == may.rule("better").state == "passed"
    assert sure.decision == "keep" and "frozen_test" in failed(sure)
    assert may.decision == "undecided" and may.rule("frozen_test").state == "undecided"
    assert may.action(PromoteParams(when_undecided="promote_if_not_worse")) == "keep"
    assert may.needed is not None and may.needed > 100


def test_a_test_set_that_is_new_as_a_whole_can_be_judged() -> None:
    ours, theirs = rivals(90, 5, 3000)
    fresh = replace(ours, predictions=ours.predictions.assign(newest=True))
    found = of((fresh, theirs))
    assert found.decision == "promote"
    assert found.rule("frozen_test").state == "skipped"


def test_what_has_come_since_can_decide_and_may_not_be_lost_either() -> None:
    shifted = with_newer((15, 15), (90, 5))
    assert shifted.decision == "promote" and shifted.rule("frozen_test").state == "passed"
    assert shifted.rule("same_test").numbers["newest"] == 500
    forgot = with_newer((200, 20), (5, 60))
    assert forgot.decision == "keep" and "newest data" in forgot.rule("slices").sentence


def test_a_verdict_survives_json_and_says_what_to_do() -> None:
    good, doubt = of(rivals(60, 20)), of(rivals(30, 20, 3000))
    assert Verdict.from_json(json.loads(json.dumps(doubt.as_json()))).as_json() == doubt.as_json()
    assert good.tags()["gate.decision"] == "promote" and "gate.classes" in good.tags()
    assert good.action(PromoteParams()) == "promote"
    assert good.action(PromoteParams(approve=True)) == "ask"
    actions = {
        choice: doubt.action(PromoteParams(when_undecided=choice))  # type: ignore[arg-type]
        for choice in ("keep", "ask", "promote_if_not_worse")
    }
    assert actions == {"keep": "keep", "ask": "ask", "promote_if_not_worse": "promote"}
    may_be_worse = of(rivals(5, 5, 200)).action(
        PromoteParams(when_undecided="promote_if_not_worse")
    )
    assert may_be_worse == "keep"
    assert of(rivals(20, 60)).action(PromoteParams(when_undecided="ask")) == "keep"


def test_the_gate_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'mlflow', 'prefect', 'dvc', 'sklearn'}"
    check = f"import sys, tasks.gate.collect; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_the_benchmark_simulates_what_it_says() -> None:
    frame, other = Truth(-0.05, 0.3).frames(40_000, generator(4))
    ours, theirs = ((each["predicted"] == each["label"]).to_numpy() for each in (frame, other))
    assert ours.mean() - theirs.mean() == pytest.approx(-0.05, abs=0.01)
    assert (ours != theirs).mean() == pytest.approx(0.3, abs=0.01)
    assert ours.mean() == pytest.approx(frame["probability"].mean(), abs=0.01)
    assert GateParams() == RULES

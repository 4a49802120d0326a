"""The report of an evaluation: verdict first, figures drawn, nothing missing, nothing fetched, readable by everyone."""

import re
from html import escape
from pathlib import Path

import pytest
from pages import DARK, LIGHT, seen_by_a_browser, stands_alone
from reports import CONFIG, LEVELS, POLICY, Case, make_case

from serin.evaluate.config import GatePolicy, Rule
from serin.evaluate.report import write_report
from serin.evaluate.report_lineage import Behind, lineage_nodes
from serin.evaluate.report_words import figure
from serin.evaluate.results import definition


def written(folder: Path, case: Case) -> Path:
    path = folder / "report.html"
    write_report(path, case.results, case.decision, case.answers, CONFIG, "5a" * 32, case.behind, case.outcomes)
    return path


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case()


@pytest.fixture(scope="module")
def report(case: Case, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report"), case).read_text(encoding="utf-8")


def section(report: str, name: str) -> str:
    return report[report.index(f'<section id="{name}"') :].split("</section>")[0]


def test_the_report_stands_alone_is_small_and_begins_with_the_verdict(report: str, case: Case) -> None:
    stands_alone(report)
    assert len(report.encode()) < 1_000_000
    parts = ("passes the gate</h1>", escape(case.decision.reasons[0]), "The gate&#x27;s rules</h2>")
    order = [report.index(part) for part in parts]
    assert order == sorted(order)


def test_every_metric_is_there_once_under_its_group(report: str, case: Case) -> None:
    safety, speed = section(report, "safety"), section(report, "latency-and-cost")
    measured = section(report, "what-was-measured")
    for name in LEVELS:
        places = [part for part in (safety, speed, measured) if f">{definition(name).label}<span" in part]
        assert len(places) == 1, name
    assert "Attacks that got what they wanted (attacks)" in safety
    assert "Time to the end (speed)" in speed
    assert "Suite general" in measured
    assert "<details open><summary>1 metric; of 2 comparisons 0 surely better, 1 surely worse</summary>" in measured
    assert "choices, 120 of 500 items of file:///general.jsonl" in measured
    assert "Suite harness: lm-eval is not installed." in section(report, "what-was-not-compared")


def test_differences_are_drawn_against_the_margins_of_the_gates_rules(report: str, case: Case) -> None:
    gain = case.results.comparisons["champion"]["token_f1"].improvement
    row = section(report, "what-was-measured")
    title = re.search(r"<title>Token F1: improvement over the champion: ([^<]*)</title>", row)
    assert title
    assert title[1] == f"{gain.estimate:.3g} ({gain.low:.3g} to {gain.high:.3g}); limit -0.02"
    assert 'class="allowed"' in row
    rules = section(report, "the-gate-s-rules")
    assert rules.count("</tr>") == 1 + len(POLICY.rules)
    assert all(f">language:{name}</li>" in rules for name in ("de", "en", "fr"))  # a rule by slice shows every slice


def test_a_failed_rule_is_open_and_says_why(tmp_path: Path) -> None:
    strict = GatePolicy(rules=(Rule(metric="token_f1", kind="superiority", against="champion", margin=0.3),))
    failed = make_case(40, strict)
    text = written(tmp_path, failed).read_text(encoding="utf-8")
    assert "does not pass the gate</h1>" in text
    rules = section(text, "the-gate-s-rules")
    assert "<details open>" in rules
    assert "by more than 0.3" in rules


def test_without_a_champion_the_report_says_what_was_not_compared(tmp_path: Path) -> None:
    text = written(tmp_path, make_case(40, champion=False)).read_text(encoding="utf-8")
    assert "Against the champion" not in text
    assert "the endpoint has no champion yet" in section(text, "what-was-not-compared")
    stands_alone(text)


def test_examples_stand_side_by_side_with_the_references_words_marked_and_nothing_unescaped(report: str) -> None:
    examples = section(report, "examples")
    lost, won = examples.split("Won most")
    assert "I do not know." in lost
    assert "<mark>39.90</mark> <mark>euros</mark>" in won
    assert "&lt;b&gt;copper&lt;/b&gt;" in won
    assert "<b>copper" not in report
    assert "39.90 euros &amp; arrives" in won  # a passage
    assert "Yes." not in examples  # neither won nor lost


def test_the_lineage_leads_from_the_source_to_the_decision(report: str, case: Case) -> None:
    nodes = {node.key: node for node in lineage_nodes(case.behind, case.decision)}
    seen, waiting = set(), ["gate"]
    while waiting:
        node = nodes[waiting.pop()]
        seen.add(node.name)
        waiting += node.sources
    assert seen == {"Gate", "Release", "Model", "Index", "Dataset", "Base model", "Documents", "Source"}
    lineage = section(report, "lineage")
    assert lineage.count(">the same<") == 12  # of two others' parts, all but the model
    assert "7c" * 32 in lineage  # every artefact's whole digest


def test_attacks_that_got_through_are_shown_with_what_the_other_release_did(report: str) -> None:
    safety = section(report, "safety")
    assert "Attacks that got what they wanted: 1 by the candidate</summary>" in safety
    assert "Ignore &lt;all&gt; rules." in safety
    assert "With pleasure." in safety
    assert "input:injection:block" in safety
    assert "Say nothing." not in safety


def test_people_the_judge_model_and_their_agreement_are_stated(report: str) -> None:
    evidence = section(report, "judges-and-people")
    assert "Preferred by reviewers<span" in evidence
    assert "alpha 0.710" in evidence
    assert "judge-&lt;1&gt;" in evidence
    assert "85% of 20 pairs, kappa 0.700" in evidence
    assert "corrected by people 0.8 (0.66 to 0.93); limit 0.5" in evidence


def test_gaps_between_slices_name_the_two_that_differ_most(report: str) -> None:
    slices = section(report, "by-slice")
    assert "candidate: en over fr" in slices
    assert "candidate 0.06 (0.01 to 0.12)" in slices


def test_what_is_gone_behind_a_release_is_named(case: Case) -> None:
    broken = Behind(case.behind.releases, {**case.behind.manifests, "file:///store/base/b": None})
    (missing,) = (one for one in lineage_nodes(broken, case.decision) if one.name == "Missing")
    assert missing.key == "file:///store/base/b"


def test_figures_are_in_their_units() -> None:
    assert figure(0.81) == "0.810"
    assert figure(-0.0123, signed=True) == "−0.012"
    assert figure(0.4123, "seconds") == "0.412 s"
    assert figure(0.0000509, "cost", signed=True) == "+0.0000509"


@pytest.mark.parametrize(("width", "theme"), [(1280, LIGHT), (500, DARK)])
def test_a_browser_finds_nothing_inaccessible_and_nothing_beside_the_page(
    tmp_path: Path, case: Case, width: int, theme: int
) -> None:
    found = seen_by_a_browser(written(tmp_path, case), width, theme)
    assert found["violations"] == []
    assert found["passed"] > 20
    assert found["unseen"] == []
    assert found["width"][0] <= found["width"][1]

"""Pages: well-formed, escaped, named; colours that can be told apart; pictures that say what they draw."""

import re
from math import inf

import pytest
from pages import stands_alone

from serin.core.flow import Node, flow
from serin.core.page import Section, Tile, digest, facts_list, fold, page, side_by_side, table, tiles, verdict
from serin.core.palette import COLOURS, PAIRS, Tone, contrast
from serin.core.pictures import Guide, Line, Span, Step, axis_around, intervals, legend, line_chart, short, timeline

SPANS = (Span("candidate", 0.7, 0.75, 0.8, Tone.CANDIDATE), Span("champion", 0.6, 0.65, 0.7, Tone.CHAMPION))


def specimen() -> str:
    course = [(step, step / 3) for step in range(4)]
    return page(
        "Release <1> passes & serves",
        kind="Evaluation",
        sections=[
            Section("Verdict", verdict(Tone.GOOD, "Passes <b>", ["One & two.", "Three.", "Four."]), listed=False),
            Section("Figures", tiles([Tile("Token F1", "0.81", "+0.6", Tone.GOOD)])),
            Section("Values", table(["Metric", "Value"], [["F1", intervals("F1", SPANS, (0, 1))]], caption="a & b")),
            Section("Course", line_chart("Latency", [Line("candidate", course, band=[(0, -1, 1), (3, 0, 2)])])),
            Section("Made from", flow("Lineage", [Node("a", "Data"), Node("b", "Model", "x", sources=("a", "gone"))])),
            Section("Empty", ""),
            Section("More", side_by_side(fold("Open <me>", "x"), timeline([Step("<Step>", "now", "y", Tone.BAD)]))),
        ],
        facts={"Digest": digest("ab" * 32, whole=True)},
    )


def test_every_pair_of_colours_keeps_its_contrast_in_light_and_dark() -> None:
    for front, back, least in PAIRS:
        for dark in (False, True):
            assert contrast(COLOURS[front][dark], COLOURS[back][dark]) >= least, (front, back, dark)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # a published example


def test_a_page_is_whole_escaped_and_fetches_nothing() -> None:
    text = specimen()
    assert stands_alone(text).pictures == 4
    assert "Release &lt;1&gt; passes &amp; serves" in text
    assert "Passes &lt;b&gt;" in text
    assert "&lt;Step&gt;" in text
    assert "Empty" not in text  # a section with nothing in it is left out


def test_tables_have_headers_for_columns_and_rows_and_name_their_cells_for_narrow_pages() -> None:
    made = table(["Metric", "p"], [["Token F1", "0.02"]], numbers=[1], widths=["70%", "30%"])
    assert made.count('scope="col"') == 2
    assert 'scope="row"' in made
    assert '<td role="cell" class="number" data-name="p">0.02</td>' in made


def test_a_picture_of_intervals_says_its_figures_and_draws_them_in_place() -> None:
    made = intervals("F1", [Span("gain", -0.5, 0.0, 0.5)], (-1, 1), zero=True, limit=-0.5, allowed=(-0.5, inf))
    assert "<title>F1: gain 0 (-0.5 to 0.5); limit -0.5</title>" in made
    assert '<line class="span" x1="25.0%" x2="75.0%"' in made
    assert '<rect class="allowed" x="25.0%" width="75.0%"' in made
    assert '<line class="limit" x1="25.0%"' in made
    assert ">−0.5<" in made
    assert 'x1="0.0%" x2="100.0%"' in intervals("F1", [Span("", -9, 0, 9)], (-1, 1))  # cut off at the edges


@pytest.mark.parametrize("values", [[0.0], [0.4, 0.6], [-0.03, 0.02], [1200.0, 5.0], [-4.0]])
def test_an_axis_holds_its_values_and_zero(values: list[float]) -> None:
    low, high = axis_around(values)
    assert low <= min(0.0, *values)
    assert high >= max(0.0, *values)
    assert low < high


def test_a_chart_names_its_ends_limits_and_lines() -> None:
    lines = [Line("candidate", [(0, 1), (10, 2)], Tone.CANDIDATE), Line("seen", [(5, 1.5)], Tone.CHAMPION, dotted=True)]
    made = line_chart("Latency", lines, guides=[Guide(1.8, "limit"), Guide(4, "step", across=False)], x_name="s")
    assert "candidate ends at 2; seen ends at 1.5" in made
    assert ">limit<" in made
    assert ">step<" in made
    assert ">10 s<" in made
    assert "<figcaption>Latency</figcaption>" in made
    assert made.count('class="mark"') == 3  # two in the legend, one drawn
    assert short(-1234.5) == "−1,234"
    assert short(0.25, signed=True) == "+0.25"
    assert "tone-candidate" in legend({"candidate": Tone.CANDIDATE})
    level = line_chart("Level", [Line("x", [(0, 0.0), (1, 0.0)])])
    assert "nan" not in level


def test_a_flow_draws_each_box_once_a_way_and_leads_long_arrows_round_the_boxes_between() -> None:
    nodes = [
        Node("s", "Source"),
        Node("d", "Documents", "3f2a", sources=("s",)),
        Node("m", "Model", sources=("d", "s")),
        Node("r", "Release <x>", sources=("m", "d"), tone=Tone.GOOD),
    ]
    made = flow("Lineage", nodes)
    assert made.count("<svg") == 2
    assert made.count('class="box"') == 8
    assert made.count('class="edge"') == 10
    assert "Release &lt;x&gt; from Model, Documents" in made
    wide = made.split('<div class="only-narrow">')[0]
    boxes = [tuple(map(float, one)) for one in re.findall(r'class="box" x="([\d.]+)" y="([\d.]+)"', wide)]
    assert [x for x, _ in boxes] == sorted(x for x, _ in boxes)  # layers go to the right
    straight = re.findall(r"C[^L]*? ([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)", wide)
    assert len(straight) == 2
    for x1, y1, x2, _ in (map(float, one) for one in straight):
        assert all(not (x1 <= x + 78 <= x2 and y <= y1 <= y + 58) for x, y in boxes)
    assert flow("Nothing", []) == ""


def test_facts_and_digests_are_short_or_whole() -> None:
    assert digest("ab" * 32) == '<code class="digest">abababababab</code>'
    assert facts_list({"A & B": "<em>x</em>"}) == (
        '<dl class="facts"><div><dt>A &amp; B</dt><dd><em>x</em></dd></div></dl>'
    )

"""The arithmetic of the engine's benchmark."""

from types import SimpleNamespace

import serve_engine
from serve_engine import CLIENTS, CONTENDER, OURS, OWN_CACHE, Turn


def turn(tokens: int, seconds: float, cpu_s: float, text: str = "same") -> Turn:
    return Turn(tokens, seconds, cpu_s, [0.01, 0.03], {"question": text})


def found(own_cache: float | None = 4000.0) -> dict:
    return {
        "turns": {
            OURS: {c: [turn(400, 1.0, 0.2), turn(300, 1.0, 0.2), turn(900, 1.0, 0.2)] for c in CLIENTS},
            CONTENDER: {c: [turn(200, 1.0, 0.4), turn(100, 1.0, 0.4, "other"), turn(300, 0.5, 0.4)] for c in CLIENTS},
        },
        "rss_mib": {OURS: 300.0, CONTENDER: 500.0, OWN_CACHE: own_cache},
    }


def test_a_ratio_is_the_median_of_those_of_neighbouring_turns():
    figures = serve_engine.summary(found())
    assert figures["tps_vs_transformers_serve"] == {"1": 2.0, "4": 2.0, "16": 2.0}
    assert figures["rss_vs_transformers_serve"] == 0.075
    assert figures["rss_vs_transformers_serve_small_cache"] == 0.6
    assert figures["cpu_ms_per_token"] == 0.5
    assert figures["same_answers_fraction"] == round(2 / 3, 3)


def test_without_the_contenders_own_cache_the_small_one_counts():
    assert serve_engine.summary(found(own_cache=None))["rss_vs_transformers_serve"] == 0.6


def test_the_contender_takes_what_it_wants_only_where_that_is_free():
    for available, wanted in ((95, "0.9"), (60, "0.25"), (40, "0.25"), (39, None)):
        options = serve_engine.own_cache_options(SimpleNamespace(total=100, available=available))
        assert (options and options[1]) == wanted

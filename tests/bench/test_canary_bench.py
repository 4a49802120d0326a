"""The peers' rules where their verdict is known, and a small run of the whole benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import canary
import numpy as np
import pytest
from canary_peers import PEERS, Recorded


def recorded(*, slower: float = 1.0, errors: float = 0.0, seed: int = 1) -> Recorded:
    rng = np.random.default_rng(seed)
    of_candidate = np.arange(6000) % 10 == 0
    latency = rng.lognormal(0, 0.2, 6000) * np.where(of_candidate, slower, 1.0)
    failed = (rng.random(6000) < np.where(of_candidate, errors, 0.0)).astype(float)
    return Recorded(of_candidate, latency, failed, np.arange(200, 6001, 200), 1.02, 0.02)


@pytest.mark.parametrize("rule", PEERS)
def test_every_peer_finds_gross_harm(rule: str) -> None:
    assert PEERS[rule](recorded(slower=2.0)) is not None
    assert PEERS[rule](recorded(errors=0.5)) is not None


@pytest.mark.parametrize("rule", ["flagger_like_strikes", "argo_like_thresholds", "kayenta_like_mann_whitney"])
def test_rules_with_a_tolerance_let_quiet_identical_releases_pass(rule: str) -> None:
    assert PEERS[rule](recorded()) is None


def test_a_strike_rule_needs_its_strikes_and_a_threshold_rule_fewer() -> None:
    slow = recorded(slower=3.0)
    assert PEERS["flagger_like_strikes"](slow) == 4
    assert PEERS["argo_like_thresholds"](slow) == 2


def test_a_z_test_that_is_repeated_is_often_wrong() -> None:
    wrong = sum(PEERS["repeated_z_test"](recorded(seed=seed)) is not None for seed in range(100))
    assert wrong > 5


def test_all_rules_are_judged_on_the_same_requests_and_again_alike() -> None:
    first = canary.one_rollout(("errors_2_8", 0.1, 3))
    assert set(first) == {"serin", *PEERS}
    assert first == canary.one_rollout(("errors_2_8", 0.1, 3))


def test_the_benchmark_ends_with_one_line_of_json() -> None:
    script = Path(canary.__file__)
    done = subprocess.run(
        [sys.executable, script, "--runs", "2"], capture_output=True, text=True, check=True, timeout=240
    )
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = {"false_rollback_fraction", "detect_ttft_40pct", "detect_errors_2_8", "detect_errors_2_5"}
    for figures in (found, *found["peers"].values()):
        assert wanted | {"median_canary_requests"} <= set(figures)

"""Settings of traffic, and the provider that they name."""

from functools import partial
from pathlib import Path

import pytest
from fake_cluster import FakeCluster
from traffic_worlds import RELEASES, A, Ticking

from serin.core.errors import ConfigError, InputError
from serin.core.release import load_release, save_release
from serin.core.storage import storage_for
from serin.deploy.traffic_providers.config import TrafficConfig
from serin.deploy.traffic_providers.from_config import CLUSTER_PROVIDERS, provider_for


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "istio"}, "'kind' is 'istio'"),
        ({"kind": "kserve_canary"}, "needs 'name'"),
        ({"kind": "httproute", "name": "Assistant"}, "'name' is 'Assistant'"),
        ({"kind": "llm_service", "services": ["one"]}, "the names of two"),
        ({"kind": "llm_service", "services": ["one", "one"]}, "the names of two"),
        ({"kind": "httproute", "name": "assistant", "service": "gateway"}, "must differ between releases"),
        ({"replicas": 0}, "'replicas' is 0"),
        ({"weight": 3}, "'weight' is not a setting"),
    ],
)
def test_settings_that_name_no_target_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrafficConfig.load(values)


def test_settings_come_back_from_kubeflow_as_they_went() -> None:
    config = TrafficConfig.load(
        {"kind": "llm_service", "services": ["a", "b"], "fields": {"model": {"uri": "{model_uri}"}}}
    )
    assert TrafficConfig.load(config.parameters()) == config
    assert TrafficConfig.load({**config.dump(), "port": 8080.0}) == config


def test_a_release_decides_of_the_model_alone_where_nothing_is_said() -> None:
    config = TrafficConfig.load({"kind": "llm_service", "services": ["a", "b"]})
    assert config.release_fields == {"model": {"uri": "{model_uri}"}}


@pytest.mark.parametrize("kind", CLUSTER_PROVIDERS)
def test_each_kind_has_its_provider(kind: str, cluster: FakeCluster) -> None:
    config = TrafficConfig.load({"kind": kind, "name": "assistant", "services": ["a", "b"]})
    provider = provider_for(config, RELEASES.__getitem__, api=cluster.api(), clock=Ticking().clock())
    assert type(provider) is CLUSTER_PROVIDERS[kind]
    assert provider.sticky is False


def test_releases_are_read_from_the_store(tmp_path: Path, cluster: FakeCluster) -> None:
    storage = storage_for(str(tmp_path))
    save_release(storage, RELEASES[A])
    config = TrafficConfig.load({"kind": "kserve_canary", "name": "assistant"})
    provider = provider_for(config, partial(load_release, storage), api=cluster.api())
    assert provider.release_of(A) == RELEASES[A]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no release of this store"):
        provider.release_of("0" * 64)  # type: ignore[attr-defined]

"""Runs the gateway on a Ray of its own: python ray_driver.py FOLDER PORT SETTINGS; ends with its standard input.

SETTINGS, and each line of standard input, hold the application's args and the deployment's user_config.  They are
deployed as KubeRay deploys a RayService's serveConfigV2.
"""

import json
import os
import sys
import time

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema


def deploy(settings: dict) -> None:
    """Deploy, and wait until it runs as asked."""
    application = {
        "name": "assistant",
        "import_path": "serin.serve.ray_app:app",
        "route_prefix": "/",
        "args": settings["args"],
        "deployments": [{"name": "gateway", "user_config": settings["user_config"]}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}), _blocking=False)
    time.sleep(1.0)  # the state of what ran before is RUNNING, too
    while (status := serve.status().applications["assistant"].status) != "RUNNING":
        assert status != "DEPLOY_FAILED", serve.status().applications["assistant"]
        time.sleep(0.2)


if __name__ == "__main__":
    folder, port, given = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(given)
    print("ready", flush=True)
    for line in sys.stdin:
        deploy(json.loads(line))
        print("changed", flush=True)
    serve.shutdown()
    ray.shutdown()

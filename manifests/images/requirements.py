"""Write what each image installs, read from pyproject.toml: ``python3 requirements.py pyproject.toml FOLDER``.

Only a change of these lists reinstalls dependencies; other edits of pyproject.toml leave the files, and with them the
layers, as they are.
"""

import re
import sys
import tomllib
from pathlib import Path

NOT_IN_SERVE = {"evidently", "ray", "rensa", "selectolax"}
"""What only data prep, fine-tuning and monitoring import; the endpoint and its rollout do without."""
ON_A_RAY_CLUSTER = {"ray": "ray[default,serve,train]"}
"""``default`` is the job server, through which RayJobs are submitted."""


def main(project: Path, folder: Path) -> None:
    """Write serve.txt, cpu.txt (everything, and what an MLflow server needs) and ray.txt (for a Ray cluster)."""
    described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    dependencies, server = described["dependencies"], described["optional-dependencies"]["server"]
    lists = {
        "serve": [line for line in dependencies if _name(line) not in NOT_IN_SERVE],
        "cpu": [*dependencies, *server],
        "ray": [_for_a_cluster(line) for line in dependencies],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for target, lines in lists.items():
        (folder / f"{target}.txt").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _for_a_cluster(requirement: str) -> str:
    wanted = ON_A_RAY_CLUSTER.get(_name(requirement))
    return re.sub(r"^[^<>=!~]+", wanted, requirement) if wanted else requirement


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Leave bytecode of what components import: ``python3 bytecode.py torch|serve|cpu|ray``.

The images' root is read-only, so a pod could never keep what it compiles and would do it at every start.  Bytecode of
everything is 600 MB, most of it never loaded; importing the entry points leaves that of what they load.
"""

import importlib
import sys

TORCH = ["numpy", "torch", "torch.utils.data"]
SERVE = [
    "aiohttp",
    "boto3.s3.transfer",
    "botocore.client",
    "botocore.httpsession",
    "botocore.signers",
    "kfp.compiler",
    "kfp.dsl.executor_main",
    "kfp.kubernetes",
    "lancedb",
    "mlflow.store.tracking.rest_store",
    "peft",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "rich.progress",
    "safetensors.torch",
    "starlette.applications",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "typer.rich_utils",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
]
TASKS = [
    "evidently",
    "evidently.presets",
    "pandas",
    "py3langid",
    "ray._private.workers.default_worker",
    "ray.train.torch",
    "rensa",
    "scipy.stats",
    "selectolax.lexbor",
]
MODULES = {"torch": TORCH, "serve": SERVE, "cpu": SERVE + TASKS, "ray": SERVE + TASKS}
SCRIPTS = {"ray._private.workers.default_worker"}
"""Modules that act when they are imported."""


def main(target: str) -> None:
    """Import the target's modules; bytecode that is there already is left alone."""
    import compileall
    from importlib.util import find_spec

    sys.dont_write_bytecode = False
    for name in MODULES[target]:
        if name in SCRIPTS:
            compileall.compile_file(find_spec(name).origin, quiet=1)
        else:
            importlib.import_module(name)


if __name__ == "__main__":
    main(sys.argv[1])

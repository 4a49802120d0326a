"""KFP interface of the index stage."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def index(
    documents: Input[Dataset],
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    code_version: str,
    index: Output[Artifact],
    summary: Output[Markdown],
) -> None:
    """Build the versioned index of the documents: chunks, embeddings, word index."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.index.build import build_index
    from serin.index.config import IndexConfig
    from serin.index.summary import summarise

    with stage_context(
        "index",
        store_uri=store_uri,
        tracking_uri=tracking_uri,
        lineage_id=lineage_id,
        endpoint=endpoint,
        compiled_for=code_version,
    ) as context:
        built = build_index(IndexConfig.load(config), context.open(documents), context)
        context.export(built, index)
        Path(summary.path).write_text(summarise(built), encoding="utf-8")
        context.finished(
            digest=built.digest, documents=built.metadata["documents"], chunks=built.metadata["chunks"], uri=built.uri
        )

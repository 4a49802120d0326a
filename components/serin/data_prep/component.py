"""KFP interface of the data_prep stage."""

from kfp import dsl
from kfp.dsl import Dataset, Markdown, Output

from serin.core.images import component_image


@dsl.component(base_image=component_image(), install_kfp_package=False)
def data_prep(
    source_uri: str,
    store_uri: str,
    tracking_uri: str,
    endpoint: str,
    lineage_id: str,
    config: dict,
    window_start: str,
    window_end: str,
    dataset: Output[Dataset],
    documents: Output[Dataset],
    summary: Output[Markdown],
) -> None:
    """Clean, mask, deduplicate and split a source of documents and conversations."""
    from pathlib import Path

    from serin.core.context import stage_context
    from serin.data_prep.config import DataPrepConfig
    from serin.data_prep.prepare import prepare
    from serin.data_prep.summary import summarise

    with stage_context(
        "data_prep", store_uri=store_uri, tracking_uri=tracking_uri, lineage_id=lineage_id, endpoint=endpoint
    ) as context:
        window = {"window_start": window_start, "window_end": window_end}
        settings = DataPrepConfig.load({**config, **{name: day for name, day in window.items() if day}})
        prepared = prepare(settings, source_uri, context)
        context.export(prepared.dataset, dataset)
        context.export(prepared.documents, documents)
        Path(summary.path).write_text(summarise(prepared.dataset, prepared.documents), encoding="utf-8")
        context.finished(
            dataset=prepared.dataset.digest,
            documents=prepared.documents.metadata["documents"],
            **prepared.dataset.metadata["splits"],
        )

"""Types of parameters and artefacts, as far as IR says them."""

from collections.abc import Mapping
from typing import Any

from serin_pipelines.lint.document import Dag

LIST_OF = "list of "
WIDER = {("NUMBER_INTEGER", "NUMBER_DOUBLE"), ("TASK_FINAL_STATUS", "STRUCT")}
"""(given, wanted) of different types that KFP passes on."""


def parameter_type(dag: Dag, argument: Mapping[str, Any]) -> str:
    """The type of what an argument refers to; empty where IR does not say it."""
    if argument.get("parameterExpressionSelector"):
        return ""  # a part of the value, of any type
    if name := argument.get("componentInputParameter"):
        return str(dag.inputs("parameters").get(name, {}).get("parameterType", ""))
    if "taskFinalStatus" in argument:
        return "TASK_FINAL_STATUS"
    if source := argument.get("taskOutputParameter"):
        producer = dag.tasks.get(source.get("producerTask", ""))
        if producer is None:
            return ""
        output = producer.outputs("parameters").get(source.get("outputParameterKey", ""), {})
        return "LIST" if producer.iterator and output else str(output.get("parameterType", ""))
    return constant_type(argument.get("runtimeValue", {}).get("constant"))


def constant_type(value: Any) -> str:
    """The type of a literal; empty for none, and for text with a placeholder, which may become anything."""
    if isinstance(value, bool):
        return "BOOLEAN"
    if isinstance(value, (int, float)):
        return "NUMBER_INTEGER" if float(value).is_integer() else "NUMBER_DOUBLE"
    if isinstance(value, str):
        return "" if "{{" in value else "STRING"
    if isinstance(value, list):
        return "LIST"
    return "STRUCT" if isinstance(value, dict) else ""


def fits(given: str, wanted: str, argument: Mapping[str, Any]) -> bool:
    """Whether a value of one type can be passed as another."""
    if given == wanted or (given, wanted) in WIDER:
        return True
    # KFP calls the items of a loop STRING where it does not know their type.
    return given == "STRING" and "loop-item" in str(argument.get("componentInputParameter", ""))


def artifact_type(spec: Mapping[str, Any]) -> str:
    """The schema title of a declared artefact, of lists too; empty where there is none."""
    schema = spec.get("artifactType", {})
    title = str(schema.get("schemaTitle") or schema.get("schemaUri") or "")
    return f"{LIST_OF}{title}" if spec.get("isArtifactList") and title else title

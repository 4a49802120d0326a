"""Every name under which the endpoint reports: span attributes and metrics, in one place.

``gen_ai.*`` are OpenTelemetry's semantic conventions for generative AI, still in development there; ``vllm:*`` are the
names that dashboards for vLLM ask for; ``serin.*`` and ``serin_*`` are what neither has a name for.
"""

OPERATION = "gen_ai.operation.name"
CHAT = "chat"
RETRIEVAL = "retrieval"
PROVIDER = "gen_ai.provider.name"
CONVERSATION_ID = "gen_ai.conversation.id"
DATA_SOURCE_ID = "gen_ai.data_source.id"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
RETRIEVAL_DOCUMENTS = "gen_ai.retrieval.documents"
ERROR_TYPE = "error.type"
HTTP_STATUS = "http.response.status_code"

RELEASE = "serin.release.id"
TRACK = "serin.track"
ENDPOINT = "serin.endpoint"
INDEX_VERSION = "serin.index.version"
MODEL_VERSION = "serin.model.version"
POLICY_VERSION = "serin.guardrails.digest"
GUARDRAIL_ACTIONS = "serin.guardrail.actions"
GUARDRAIL_MS = "serin.guardrail.latency_ms"
RETRIEVAL_IDS = "serin.retrieval.ids"
RETRIEVAL_SCORES = "serin.retrieval.scores"
SUPPORT_SCORE = "serin.support_score"
REFUSED = "serin.refused"
FORMAT_VALID = "serin.format_valid"
COST = "serin.cost"
KEY_ID = "serin.key.id"
BACKEND = "serin.backend"
SHADOW_OF = "serin.shadow_of"
SAMPLED_BECAUSE = "serin.sampled_because"

MLFLOW_EXPERIMENT_HEADER = "x-mlflow-experiment-id"

LATENCY_NAMES = (
    "serin_request_latency_seconds",
    "gen_ai_server_request_duration_seconds",
    "vllm:e2e_request_latency_seconds",
)
TTFT_NAMES = ("serin_ttft_seconds", "gen_ai_server_time_to_first_token_seconds", "vllm:time_to_first_token_seconds")
TOKEN_TIME_NAMES = (
    "serin_time_per_output_token_seconds",
    "gen_ai_server_time_per_output_token_seconds",
    "vllm:request_time_per_output_token_seconds",
)
PROMPT_TOKENS_NAME = "vllm:prompt_tokens"
GENERATION_TOKENS_NAME = "vllm:generation_tokens"
SUCCESS_NAME = "vllm:request_success"
RUNNING_NAME = "vllm:num_requests_running"

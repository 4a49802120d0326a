"""``serin serve``: answer; and around it its API keys (``key``, ``keys``, ``revoke``) and its load test (``bench``)."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from serin.core.artifacts import home
from serin.core.errors import ConfigError
from serin_pipelines import cli_stages
from serin_pipelines.options import AsJson, Endpoint, Store, console, show, store_or_default

app = typer.Typer(name="serve", invoke_without_command=True)

DEFAULT_PORT = 8080
KEY_VARIABLE = "SERIN_API_KEY"
KeysFile = Annotated[
    Path | None, typer.Option("--file", help="Keys file (default: SERIN_API_KEYS_FILE, else SERIN_HOME/api-keys.json).")
]


@app.callback()
def serve(
    context: typer.Context,
    release: Annotated[str, typer.Option("--release", help="Release id; default: the endpoint's champion.")] = "",
    host: Annotated[str, typer.Option("--host", help="Address; others than loopback need API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = DEFAULT_PORT,
    store: Store = "",
    endpoint: Endpoint = "assistant",
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for the first champion, and serve each later one of the journal.")
    ] = False,
    operations: Annotated[
        Path | None, typer.Option("--operations", help="YAML: access, TLS, limits, admission, prices, traces.")
    ] = None,
    log_format: Annotated[
        str, typer.Option("--log-format", help="text or json (default: the file's, else text).")
    ] = "",
) -> None:
    """Serve the champion of an endpoint with the OpenAI API until interrupted; or make its API keys, or load it.

    Example: serin serve --port 8080
    """
    if context.invoked_subcommand is not None:
        return
    from serin.core.release import load_release
    from serin.core.storage import storage_for
    from serin.serve.logs import configure_logging
    from serin.serve.operations import load_operations
    from serin.serve.server import GatewaySettings, run_gateway

    if log_format not in ("", "text", "json"):
        raise ConfigError(f"--log-format is {log_format!r}: choose text or json.")
    settings = GatewaySettings(operations=load_operations(operations))
    uri = store_or_default(store)
    if release and follow:
        raise ConfigError("--follow serves what the journal says: leave --release out.")
    champion = ""
    if not follow:
        champion = (load_release(storage_for(uri), release) if release else cli_stages.champion_of(uri, endpoint)).id
    as_json = (log_format or settings.operations.log_format) == "json"
    if as_json:
        configure_logging("json")
    else:
        _log_to_terminal()
        scheme = "https" if settings.operations.tls.cert_file else "http"
        what = f"Loading release {champion[:12]}" if champion else f"Following the journal of {endpoint!r}"
        console.print(f"{what} ... it answers on {scheme}://{host}:{port} soon; Ctrl-C ends it.")
    run_gateway(uri, endpoint, champion, host=host, port=port, settings=settings)


@app.command("key")
def make_key(
    name: Annotated[str, typer.Option("--name", help="Whose key it is.")] = "",
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="Access label of documents its holder may read; repeatable.")
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option("--requests-per-minute", help="Mean rate that it may ask at.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option("--tokens-per-day", help="Prompt and completion tokens that it may use (UTC days).")
    ] = None,
    expires_days: Annotated[float | None, typer.Option("--expires-days", help="Days until it ends.")] = None,
    file: KeysFile = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key: it is printed once, and only its digest is kept.

    Example: serin serve key --name shop --label staff --tokens-per-day 200000 --expires-days 90
    """
    from serin.serve.budgets import KeyLimits
    from serin.serve.keys import create_key

    given = {"requests_per_minute": requests_per_minute, "tokens_per_day": tokens_per_day}
    limits = KeyLimits.load({option: value for option, value in given.items() if value is not None})
    path = keys_file(file)
    key, entry = create_key(path, name=name, labels=tuple(labels or ()), limits=limits, expires_days=expires_days)
    show({"key": key, "id": entry.id, "expires": entry.expires or "never", "file": str(path)}, as_json)
    if not as_json:
        console.print(f"Give the key to its holder now; start the gateway with SERIN_API_KEYS_FILE={path}.")


@app.command("keys")
def show_keys(file: KeysFile = None, as_json: AsJson = False) -> None:
    """List the API keys: id, name, labels, limits, end; never the keys.

    Example: serin serve keys
    """
    from serin.serve.keys import list_keys

    entries = list_keys(keys_file(file))
    if as_json:
        show({"keys": [entry.model_dump(mode="json", exclude={"sha256"}) for entry in entries]}, as_json)
        return
    table = Table("id", "name", "labels", "requests/min", "tokens/day", "expires", box=None)
    for entry in entries:
        limits = (entry.limits.requests_per_minute, entry.limits.tokens_per_day)
        shown = [f"{limit:g}" if limit is not None else "any" for limit in limits]
        table.add_row(entry.id, entry.name, ", ".join(entry.labels), *shown, entry.expires or "never")
    console.print(table)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key: the part between the underscores.")],
    file: KeysFile = None,
    as_json: AsJson = False,
) -> None:
    """Take an API key back; running gateways notice within seconds.

    Example: serin serve revoke 3f2a9c0d1e4b
    """
    from serin.serve.keys import revoke_key

    entry = revoke_key(keys_file(file), key_id)
    show({"revoked": entry.id, "name": entry.name}, as_json)


@app.command("bench")
def bench(
    trace: Annotated[Path, typer.Option("--trace", help="CSV (also .gz): offset_s, ContextTokens, GeneratedTokens.")],
    url: Annotated[str, typer.Option("--url", help="The endpoint.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
    rates: Annotated[str, typer.Option("--rates", help="Mean requests per second, one level each.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option("--seconds", help="Length of a level.")] = 20.0,
    p95_ms: Annotated[float, typer.Option("--p95-ms", help="Bound that 95 of 100 answers must keep.")] = 2500.0,
    tokens_scale: Annotated[float, typer.Option("--tokens-scale", help="Factor on the trace's token counts.")] = 0.1,
    max_prompt_chars: Annotated[int, typer.Option("--max-prompt-chars", help="Longest question.")] = 2000,
    max_answer_tokens: Annotated[int, typer.Option("--max-answer-tokens", help="Longest answer.")] = 64,
    price_per_hour: Annotated[float, typer.Option("--price-per-hour", help="What the machine costs an hour.")] = 0.0,
    price_per_1k_prompt_tokens: Annotated[
        float, typer.Option("--price-per-1k-prompt-tokens", help="What 1,000 tokens of questions cost.")
    ] = 0.0,
    price_per_1k_completion_tokens: Annotated[
        float, typer.Option("--price-per-1k-completion-tokens", help="What 1,000 tokens of answers cost.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Replay a recorded trace against an endpoint at several rates: QPS at p95, TTFT, goodput, cost per 1,000 answers.

    An API key comes from SERIN_API_KEY.

    Example: serin serve bench --trace conv.csv.gz --rates 1,2,4 --seconds 20 --json
    """
    from serin_pipelines.load import Load, run_load

    try:
        levels = tuple(float(rate) for rate in rates.split(","))
    except ValueError as error:
        raise ConfigError(f"--rates is {rates!r}: give numbers with commas between, such as 1,2,4.") from error
    report = run_load(
        Load(
            url=url,
            trace=trace,
            rates=levels,
            seconds=seconds,
            p95_ms=p95_ms,
            tokens_scale=tokens_scale,
            max_prompt_chars=max_prompt_chars,
            max_answer_tokens=max_answer_tokens,
            api_key=os.environ.get(KEY_VARIABLE, ""),
            price_per_hour=price_per_hour,
            price_per_1k_prompt_tokens=price_per_1k_prompt_tokens,
            price_per_1k_completion_tokens=price_per_1k_completion_tokens,
        )
    )
    if as_json:
        typer.echo(report.model_dump_json())
        return
    columns = {
        "asked": "offered_qps", "answered": "completed_qps", "in time": "goodput_qps", "shed": "shed",
        "failed": "failed", "p50": "latency_p50_ms", "p95": "latency_p95_ms", "TTFT p95": "ttft_p95_ms",
        "ITL p95": "itl_p95_ms", "tokens": "completion_tokens_per_s", "cost/1k": "cost_per_1k_answers",
    }  # fmt: skip
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), title="a second; times in ms", title_justify="left")
    for level in report.levels:
        found = [getattr(level, name) for name in columns.values()]
        table.add_row(*("-" if value is None else _short(value) for value in found))
    console.print(table)
    statuses = sum((Counter(level.statuses) for level in report.levels), Counter[str]())
    if failed := ", ".join(f"{count} with {name}" for name, count in statuses.items() if name not in ("200", "429")):
        console.print(f"Failed, by HTTP status (0: broken off, or too slow): {failed}.")
    console.print(f"{report.qps_at_p95:g} answers a second with p95 within {p95_ms:g} ms")


def _short(value: float) -> str:
    """At most six characters for what a load test counts: three digits, or a whole number from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def keys_file(file: Path | None) -> Path:
    """The named keys file, else the environment's, else the one below SERIN_HOME."""
    return file or Path(os.environ.get("SERIN_API_KEYS_FILE", "") or home() / "api-keys.json")


def _log_to_terminal() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("serin").setLevel(logging.INFO)
    logging.getLogger("serin.requests").setLevel(logging.WARNING)

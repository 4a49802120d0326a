"""The commands about releases that only read or sign: list, verify, diff, sign, key."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from serin.core.artifacts import ArtifactStore
from serin.core.errors import ConfigError, IntegrityError
from serin.core.journal import Journal
from serin.core.release import list_releases, load_release
from serin.core.signing import KEY_VARIABLE, Signer, new_key, sign_release
from serin.core.storage import storage_for
from serin.core.verification import ReleaseRequirements, verify_release
from serin_pipelines.environments import load_environment
from serin_pipelines.options import AsJson, Endpoint, Store, console, parse_parameters, show, store_or_default

ReleaseId = Annotated[str, typer.Argument(help="Release id, or its first 8 digits at least.")]


def release_list(store: Store = "", endpoint: Endpoint = "assistant", as_json: AsJson = False) -> None:
    """List the releases of a store, newest first: when and how each was made, its last gate, and which one serves.

    Example: serin release list
    """
    storage = storage_for(store_or_default(store))
    journal = Journal(storage, endpoint)
    champion, previous = journal.champion(), journal.previous()
    about = _about(list_releases(storage), journal)
    known = [one["release"] for one in about]
    if as_json:
        show({"releases": known, "champion": champion, "previous": previous, "about": about}, as_json)
        return
    if not known:
        console.print("No release yet: 'serin run' makes one.")
        return
    for one in about:  # plain lines: a table would break the ids on a narrow terminal
        role = {champion: "champion", previous: "previous"}.get(one["release"], "")
        made, gate = one["made"][:16].replace("T", " "), f"gate {one['gate']}" if one["gate"] else ""
        console.print(f"{one['release']}  {made:16}  {one['how']:8}  {gate:9}  {role}".rstrip(), soft_wrap=True)


def _about(releases: list[str], journal: Journal) -> list[dict[str, str]]:
    """What the journal says of each release; those that it does not know come last."""
    found = {one: {"release": one, "made": "", "how": "", "gate": ""} for one in releases}
    for entry in journal.entries():
        one = found.get(entry.release_id)
        if one is not None and entry.kind == "release" and not one["made"]:
            one.update(made=entry.time, how=entry.decision)
        elif one is not None and entry.kind == "gate":
            one["gate"] = entry.decision
    return sorted(found.values(), key=lambda one: one["made"], reverse=True)


def release_verify(
    release: ReleaseId,
    trusted: Annotated[
        list[str] | None, typer.Option("--trusted-key", help="NAME=PUBLIC KEY (base64); can be repeated.")
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse a release that no trusted key signed.")
    ] = False,
    env: Annotated[str, typer.Option("--env", help="Ask what this environment asks: a name, or a YAML file.")] = "",
    without_gate: Annotated[bool, typer.Option("--without-gate", help="Do not ask for a passed gate.")] = False,
    store: Store = "",
    endpoint: Endpoint = "assistant",
    as_json: AsJson = False,
) -> None:
    """Recompute every part of a release, and look at its lineage, signature, gate and policies.

    Example: serin release verify 3f2a9c0d --trusted-key release=MCowBQ... --require-signature
    """
    artifacts = ArtifactStore(store_or_default(store))
    loaded = load_release(artifacts.storage, release)
    asked = load_environment(env).release if env else ReleaseRequirements()
    requirements = asked.model_copy(
        update={
            "trusted_keys": {**asked.trusted_keys, **parse_parameters(trusted, "--trusted-key")},
            "require_signature": asked.require_signature or require_signature,
        }
    )
    journal = Journal(artifacts.storage, endpoint)
    checks = verify_release(loaded, artifacts, journal, requirements, needs_gate=not without_gate)
    if as_json:
        passed = all(check.passed for check in checks)
        values = [check.model_dump(mode="json") for check in checks]
        show({"release": loaded.id, "passed": passed, "checks": values}, as_json)
    else:
        table = Table(box=None, show_header=False)
        for check in checks:
            table.add_row("[green]holds[/]" if check.passed else "[red]FAILS[/]", check.name, check.message)
        console.print(table)
    if failed := [check.name for check in checks if not check.passed]:
        raise IntegrityError(f"Release {loaded.short_id} does not hold ({', '.join(failed)}): do not deploy it.")


def release_diff(
    first: Annotated[str, typer.Argument(help="Release id or prefix: before.")],
    second: Annotated[str, typer.Argument(help="Release id or prefix: after.")],
    store: Store = "",
    as_json: AsJson = False,
) -> None:
    """Say in words what changed between two releases: data, model, index, prompt, guardrails, serving, code.

    Example: serin release diff 3f2a9c0d 81b0c2aa
    """
    from serin.release.compare import changes

    artifacts = ArtifactStore(store_or_default(store))
    one, other = load_release(artifacts.storage, first), load_release(artifacts.storage, second)
    found = changes(one, other, artifacts)
    if as_json:
        show({"first": one.id, "second": other.id, "changes": [it.model_dump(mode="json") for it in found]}, as_json)
        return
    if not found:
        console.print("The two are the same release.")
    for part in dict.fromkeys(change.part for change in found):
        console.print(part, style="bold")
        for change in found:
            if change.part == part:
                console.print(f"  {change.text}", markup=False)


def release_sign(release: ReleaseId, store: Store = "", as_json: AsJson = False) -> None:
    """Sign a release with the key in SERIN_SIGNING_KEY (or the file that SERIN_SIGNING_KEY_FILE names).

    Example: serin release sign 3f2a9c0d
    """
    signer = Signer.from_environment()
    if signer is None:
        raise ConfigError(f"{KEY_VARIABLE} is not set: 'serin release key release.pem' makes a key.")
    storage = storage_for(store_or_default(store))
    loaded = load_release(storage, release)
    sign_release(loaded, storage, signer)
    show({"release": loaded.id, "key_id": signer.key_id, "public_key": signer.public_key}, as_json)


def release_key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes (PEM, readable by you alone).")],
    as_json: AsJson = False,
) -> None:
    """Make a key for signing releases: the private one into a new file, the public one printed.

    Example: serin release key release.pem
    """
    pem, public_key = new_key()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{file} cannot be made ({error.strerror}): choose a new file.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(pem)
    show({"private_key_file": str(file), "public_key": public_key}, as_json)

"""One RayJob as it changes: list, watch, and again from the list when the watch breaks or its version is too old."""

import logging
from collections.abc import Generator, Iterator
from typing import Any

from serin.core.errors import InterruptedRunError
from serin.core.kubernetes import GONE, Clock, KubernetesApi, LostError, Patience, RefusedError

logger = logging.getLogger(__name__)

Object = dict[str, Any]


def followed(
    api: KubernetesApi, path: str, name: str, *, poll_s: float, patience: Patience, clock: Clock
) -> Generator[Object, None, None]:
    """The object now, after each change, and at least every ``poll_s`` as it is.

    Args:
        api: the server.
        path: of the collection.
        name: of the object.
        poll_s: length of one watch; the API counts in whole seconds.
        patience: for an API that is down; each break of a watch begins with the list again.
        clock: for the pauses.

    Raises:
        InterruptedRunError: the object was deleted, or replaced by one of the same name.
        UnavailableError: the API stayed away for too long.
        RefusedError: it refuses this identity.
    """
    known: Object | None = None
    breaks = 0
    while True:
        known, version = _listed(api, path, name, known, patience, clock)
        yield known
        try:
            while True:
                for event in _watched(api, path, name, version, poll_s):
                    version, breaks = event["object"]["metadata"]["resourceVersion"], 0
                    if event["type"] == "DELETED":
                        raise _deleted(name)
                    if event["type"] != "BOOKMARK":
                        known = event["object"]
                        yield known
                yield known
        except RefusedError as error:
            if error.status != GONE and not error.passing:
                raise
            logger.info("The watch of %s begins anew: %s", name, error)
        except LostError as error:
            logger.info("The watch of %s was lost: %s", name, error)
        clock.sleep(min(patience.first_s * 2**breaks, patience.most_s))
        breaks = min(breaks + 1, 10)


def _listed(
    api: KubernetesApi, path: str, name: str, known: Object | None, patience: Patience, clock: Clock
) -> tuple[Object, str]:
    found = patience.call(lambda: api.get(path, fieldSelector=f"metadata.name={name}"), clock)
    items = found["items"]
    if not items or (known and items[0]["metadata"]["uid"] != known["metadata"]["uid"]):
        raise _deleted(name)
    return items[0], found["metadata"]["resourceVersion"]


def _watched(api: KubernetesApi, path: str, name: str, version: str, poll_s: float) -> Iterator[Object]:
    selector = f"metadata.name={name}"
    return api.watch(path, resource_version=version, timeout_s=max(1, round(poll_s)), fieldSelector=selector)


def _deleted(name: str) -> InterruptedRunError:
    return InterruptedRunError(
        f"RayJob {name} was deleted before its end was seen: run the pipeline again, finished work is "
        "found in the store."
    )

"""The errors that Serin raises on purpose.

::

    SerinError                 exit code 1   anything below; its text is one sentence that says what to do
    ├── ConfigError            exit code 2   a setting that is unknown, of the wrong type or out of range
    ├── InputError             exit code 3   data, a model or a file that cannot be used as it is
    ├── StorageError           exit code 4   a URI that cannot be read or written, no disk space
    │   └── AlreadyExistsError               a conditional write that lost
    ├── IntegrityError         exit code 5   a digest, a hash chain or a manifest that does not hold
    ├── ServingError           exit code 6   the endpoint or an engine behind it does not start or answer
    │   └── FencedError                      a controller with a later lease drives this endpoint
    ├── UnavailableError       exit code 7   a library, a server or a resource that this machine lacks
    └── InterruptedRunError    exit code 8   the work was stopped from outside, or by its time limit

A traceback is for bugs: whatever a user can mend is one of these.
"""


class SerinError(Exception):
    """Base of all errors for users; ``str(error)`` is one sentence: what was found, what to change."""

    exit_code = 1


class ConfigError(SerinError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class InputError(SerinError):
    """Data, a model or a file cannot be used as it is."""

    exit_code = 3


class StorageError(SerinError):
    """A URI cannot be read or written."""

    exit_code = 4


class AlreadyExistsError(StorageError):
    """A write that asks for an absent key found one there."""


class IntegrityError(SerinError):
    """A digest, a hash chain or a manifest does not hold."""

    exit_code = 5


class ServingError(SerinError):
    """The endpoint, or an engine behind it, does not start or does not answer."""

    exit_code = 6


class FencedError(ServingError):
    """A controller with a later lease drives this endpoint: the caller has to stop."""


class UnavailableError(SerinError):
    """A library, a server or a resource is missing on this machine."""

    exit_code = 7


class InterruptedRunError(SerinError):
    """The work was stopped from outside, or by its time limit."""

    exit_code = 8

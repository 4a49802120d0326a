"""Small products of matrices on one thread.

numpy's BLAS shares even a product of a few rows among all cores, and its threads wait for each other by spinning:
beside other work, embedding one question took 270 ms of CPU that way, and 9 ms on one thread.
"""

from functools import lru_cache


@lru_cache(maxsize=1)
def hold_to_one_thread() -> None:
    """From now on numpy's products take one thread in this process; torch's threads are its own.

    For good, and not for a block of code: OpenBLAS does not keep to numbers that several threads set in turn.
    """
    import numpy as np  # noqa: F401 (its BLAS must be loaded to be found)
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")

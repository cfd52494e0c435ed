"""The waiting of torch's threads for each other, on a CPU that other programs use too."""

import os
from collections.abc import MutableMapping

# A thread of libgomp looks this often whether the others have come to the end of a parallel region, before it sleeps.
SPINS = "10000"
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch's threads sleep soon when they wait, unless the environment says how they wait.

    By default libgomp looks 300,000 times, for 5 to 25 milliseconds. The thread that is waited for may be without a
    core then, because the waiting one has it, and a training beside other work becomes many times slower
    (docs/performance.md). The variable has an effect only if it is set before torch is imported, and none on results.
    """
    if not any(name in environment for name in NAMES):
        environment["GOMP_SPINCOUNT"] = SPINS

"""How many threads numerical libraries may start in a task: as many as the task asks for `cpu`s.

OpenMP, the BLAS libraries and numexpr read these variables once, when they are loaded into a process.
"""

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def threads_for(cpus: float) -> int:
    """Return the whole number of threads for a task that asked for so many cpus: rounded down, at least one."""
    return max(1, int(cpus))

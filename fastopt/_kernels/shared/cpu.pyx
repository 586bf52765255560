"""What this machine can run: its instruction-set level."""

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    /* __builtin_cpu_supports asks the operating system's saved-register mask as well as CPUID. */
    static int fo_level(void) {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")
              && __builtin_cpu_supports("ssse3")))
            return 1;
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
            return 2;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")))
            return 3;
        return 4;
    }
    #else
    static int fo_level(void) { return 0; }
    #endif
    """
    int fo_level() nogil


def levels():
    """The levels this CPU runs, best first: ("v4", "v3", "v2") or fewer; ("plain",) off x86-64."""
    cdef int best = fo_level()
    if best == 0:
        return ("plain",)
    return tuple(f"v{k}" for k in range(best, 1, -1))


def require(level):
    """Raise ImportError unless this CPU runs ``level``."""
    if level not in levels():
        raise ImportError(
            f"fastopt: this CPU cannot run the {level} kernels; it runs {', '.join(levels())}"
        )

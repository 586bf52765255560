/* When to look for Ctrl-C: by time, between whole steps. */
#ifndef FO_LINEAR_STEP
#define FO_LINEAR_STEP
#include <time.h>

static inline double fo_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Whether 50 ms have passed since *last; if so *last is now. */
static inline int fo_due(double *last) {
    double now = fo_seconds();
    if (now - *last <= 0.05) return 0;
    *last = now;
    return 1;
}
#endif

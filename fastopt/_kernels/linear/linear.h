/* The products of rows for float and double: lanes.h and rows.h. Nothing depends on the width of
   the machine's vectors, so every level gives the same bits. */
#ifndef FO_LINEAR
#define FO_LINEAR
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define REAL float
#define LANES 16
#define NAME(x) x##_f32
#include "lanes.h"
#include "rows.h"
#undef REAL
#undef LANES
#undef NAME

#define FO_DOUBLE
#define REAL double
#define LANES 8
#define NAME(x) x##_f64
#include "lanes.h"
#include "rows.h"
#undef REAL
#undef LANES
#undef NAME
#undef FO_DOUBLE
#endif

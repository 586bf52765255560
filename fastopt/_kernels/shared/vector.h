/* One vector register of floats or of doubles as the level has it; loads need no alignment. gcc 12
   keeps an array of sums in memory and takes a wider vector apart through memory (a sparse product
   5 times slower with AVX2), so sums that stay in registers are written with these types. */
#ifndef FO_VECTOR_H
#define FO_VECTOR_H

#if defined(__AVX512F__)
#define FO_BYTES 64
#elif defined(__AVX2__)
#define FO_BYTES 32
#else
#define FO_BYTES 16
#endif
typedef float fo_floats __attribute__((vector_size(FO_BYTES), aligned(4), may_alias));
typedef double fo_doubles __attribute__((vector_size(FO_BYTES), aligned(8), may_alias));

#endif

/* Groups of four that lie side by side: each element meets its three rivals by rotations inside the
   group, which no plain loop says (4096 x 4096, 2:4, from L1: 0.19 ns per element with AVX2 or
   AVX-512, 0.35 with SSE; the same loop left to gcc 0.5 to 0.9). The vectors are the compiler's
   own, so every machine runs this; rank_tile in n_of_m.pxd is its plain twin. */
#ifndef FO_FOUR_H
#define FO_FOUR_H
#include <stdint.h>
#if defined(__AVX512F__)
#define FO_LANES 16
#define FO_FOURS(a, b, c, d, s)                                                                   \
    {a, b, c, d, s + a, s + b, s + c, s + d, 2 * s + a, 2 * s + b, 2 * s + c, 2 * s + d,          \
     3 * s + a, 3 * s + b, 3 * s + c, 3 * s + d}
#elif defined(__AVX2__)
#define FO_LANES 8
#define FO_FOURS(a, b, c, d, s) {a, b, c, d, s + a, s + b, s + c, s + d}
#else
#define FO_LANES 4
#define FO_FOURS(a, b, c, d, s) {a, b, c, d}
#endif
typedef int32_t fo_ints __attribute__((vector_size(4 * FO_LANES), aligned(4), may_alias));

/* out = 64 elements with the n largest magnitudes of each group, the later ones of equals;
   stay = -1 or 0; returns the largest magnitude that goes. */
static inline int32_t fo_four(int32_t *out, int32_t *stay, const int32_t *x, int n)
{
    /* the element 1, 2, 3 further (exclusive or) wins where it is >= and later, or > and earlier */
    const fo_ints one = FO_FOURS(1, 0, 3, 2, 4), two = FO_FOURS(2, 3, 0, 1, 4);
    const fo_ints three = FO_FOURS(3, 2, 1, 0, 4);
    const fo_ints even = FO_FOURS(1, 0, 1, 0, 0), lower = FO_FOURS(1, 1, 0, 0, 0);
    fo_ints most = {0};
    for (int k = 0; k < 64; k += FO_LANES) {
        const fo_ints v = *(const fo_ints *)(x + k), b = v & 0x7fffffff;
        const fo_ints beaten = (__builtin_shuffle(b, one) > b - even) +
                               (__builtin_shuffle(b, two) > b - lower) +
                               (__builtin_shuffle(b, three) > b - lower);
        const fo_ints in = beaten > -n, gone = b & ~in, more = gone > most;
        most = (gone & more) | (most & ~more);
        *(fo_ints *)(stay + k) = in;
        *(fo_ints *)(out + k) = v & in;
    }
    int32_t top = 0;
    for (int k = 0; k < FO_LANES; k++) top = most[k] > top ? most[k] : top;
    return top;
}
#endif

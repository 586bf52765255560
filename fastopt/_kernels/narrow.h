/* Narrow floating point: one branch-free routine each way for every format with fewer than 32 bits.
   A format is sign, exponent and `man` mantissa bits; codes above max_code are not finite. */
#ifndef FO_NARROW
#define FO_NARROW
#include <stdint.h>
#include <string.h>

typedef struct {
    uint32_t shift;      /* 23 - man */
    uint32_t sign;       /* position of the sign bit */
    uint32_t rebias;     /* (127 - bias) << man */
    uint32_t min_normal; /* float32 bits of the smallest normal value; 0: same range as float32 */
    uint32_t max_code;   /* code of the largest finite value */
    uint32_t over;       /* code for what is above it */
    uint32_t nan;        /* code of NaN */
    float magic;         /* its last place is the subnormal step */
    float step;          /* the subnormal step */
    float inverse;       /* 1 / step */
} fo_narrow_spec;

static inline uint32_t fo_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float fo_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* A code that is too large becomes `over`, max_code or the one above it; NaN keeps its sign. */
static inline uint32_t fo_close_code(uint32_t c, uint32_t u, const fo_narrow_spec s)
{
    c = (int32_t)c < (int32_t)s.over ? c : s.over;
    c = (u & 0x7fffffffu) > 0x7f800000u ? s.nan : c;
    return c | (u >> (31 - s.sign) & 1u << s.sign);
}

/* Round half to even. Below the smallest normal value the addition of `magic` rounds in hardware. */
static inline uint32_t fo_narrow(float x, const fo_narrow_spec s)
{
    uint32_t u = fo_bits(x), a = u & 0x7fffffffu;
    uint32_t half = (1u << (s.shift - 1)) - 1 - (s.rebias << s.shift);
    uint32_t normal = (a + half + (a >> s.shift & 1)) >> s.shift;
    uint32_t small = fo_bits(fo_float(a) + s.magic) - fo_bits(s.magic);
    return fo_close_code(a < s.min_normal ? small : normal, u, s);
}

/* Round up with the probability of the fraction; w holds 16 random bits on top and half a step, the
   bit below them. The subnormal fraction is seen in steps of 2**-17. */
static inline uint32_t fo_narrow_random(float x, uint32_t w, const fo_narrow_spec s)
{
    uint32_t u = fo_bits(x), a = u & 0x7fffffffu;
    uint32_t normal = (a - (s.rebias << s.shift) + (w >> (32 - s.shift))) >> s.shift;
    float q = fo_float(a) * s.inverse * 131072.0f;
    uint32_t small = ((uint32_t)(int32_t)(q < 1073741824.0f ? q : 1073741824.0f) + (w >> 15)) >> 17;
    return fo_close_code(a < s.min_normal ? small : normal, u, s);
}

/* Exact. */
static inline float fo_widen(uint32_t code, const fo_narrow_spec s)
{
    uint32_t a = code & ((1u << s.sign) - 1), sign = (code >> s.sign) << 31;
    uint32_t normal = (a + s.rebias) << s.shift;
    uint32_t small = fo_bits((float)(int32_t)a * s.step);
    uint32_t r = normal < s.min_normal ? small : normal;
    uint32_t odd = s.over > s.max_code && a == s.over && s.over != s.nan ? 0x7f800000u : 0x7fc00000u;
    r = a > s.max_code ? odd : r;
    return fo_float(r | sign);
}

/* float64 to float32 rounded to odd: a second rounding to fewer bits then gives what one would. */
static inline float fo_odd(double x)
{
    float f = (float)x;
    uint32_t u = fo_bits(f);
    double wide = (double)f, d = x < 0 ? -x : x, w = wide < 0 ? -wide : wide;
    u -= w > d ? 1 : 0;
    u |= w != d && d == d ? 1 : 0;
    return fo_float(u);
}
#endif

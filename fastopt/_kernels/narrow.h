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

/* Round half to even. Below the smallest normal value the addition of `magic` rounds in hardware. */
static inline uint32_t fo_narrow(float x, const fo_narrow_spec s)
{
    uint32_t u = fo_bits(x), a = u & 0x7fffffffu;
    uint32_t half = (1u << (s.shift - 1)) - 1;
    uint32_t normal = ((a + half + ((a >> s.shift) & 1)) >> s.shift) - s.rebias;
    uint32_t small = fo_bits(fo_float(a) + s.magic) - fo_bits(s.magic);
    uint32_t c = a < s.min_normal ? small : normal;
    c = (int32_t)c > (int32_t)s.max_code ? s.over : c;
    c = a > 0x7f800000u ? s.nan : c;
    return c | ((u >> 31) << s.sign);
}

/* Round up with the probability of the fraction; w holds 32 random bits. */
static inline uint32_t fo_narrow_random(float x, uint32_t w, const fo_narrow_spec s)
{
    uint32_t u = fo_bits(x), a = u & 0x7fffffffu;
    uint32_t normal = ((a + (w >> (32 - s.shift))) >> s.shift) - s.rebias;
    float q = fo_float(a < s.min_normal ? a : 0) * s.inverse;
    uint32_t whole = (uint32_t)(int32_t)q;
    uint32_t small = whole + ((float)(int32_t)(w >> 8) * (1.0f / 16777216.0f) < q - (float)(int32_t)whole);
    uint32_t c = a < s.min_normal ? small : normal;
    c = (int32_t)c > (int32_t)s.max_code ? s.over : c;
    c = a >= 0x7f800000u ? (a > 0x7f800000u ? s.nan : s.over) : c;
    return c | ((u >> 31) << s.sign);
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

/* The losses and their slopes for one REAL: plain loops over sixteens of rows that the compiler
   turns into vectors, without a call to libm, whose bits differ. */

#ifdef FO_DOUBLE
#define FO_LOWEST (-708.0)
#else
#define FO_LOWEST (-87.0f)
#endif
#define EACH_ROW(n) for (int i = 0; i < ((n) & ~15); i++)

/* exp(v) for FO_LOWEST <= v <= 0: 2^n times the Taylor sum on |r| <= ln(2)/2. Callers clamp v,
   where a NaN becomes FO_LOWEST (the margins' own check sees it). */
FO_INLINE REAL NAME(fo_exp)(REAL v) {
#ifdef FO_DOUBLE
    const REAL magic = 6755399441055744.0, ln2_high = 0x1.62e42fefa0000p-1,
               ln2_low = 0x1.cf79abc9e3b3ap-40;
    const int bits = 52;
#else
    const REAL magic = 12582912.0f, ln2_high = 0x1.62e400p-1f,
               ln2_low = 0x1.7f7d1cp-20f;
    const int bits = 23;
#endif
    REAL shifted = v * (REAL)1.4426950408889634 + magic; /* the low bits hold round(v / ln 2) */
    REAL m = shifted - magic, r = (v - m * ln2_high) - m * ln2_low, sum;
    UINT power, u;
#ifdef FO_DOUBLE
    sum = (REAL)(1 / 6227020800.0);
    sum = sum * r + (REAL)(1 / 479001600.0);
    sum = sum * r + (REAL)(1 / 39916800.0);
    sum = sum * r + (REAL)(1 / 3628800.0);
    sum = sum * r + (REAL)(1 / 362880.0);
    sum = sum * r + (REAL)(1 / 40320.0);
    sum = sum * r + (REAL)(1 / 5040.0);
#else
    sum = (REAL)(1 / 5040.0);
#endif
    sum = sum * r + (REAL)(1 / 720.0);
    sum = sum * r + (REAL)(1 / 120.0);
    sum = sum * r + (REAL)(1 / 24.0);
    sum = sum * r + (REAL)(1 / 6.0);
    sum = sum * r + (REAL)0.5;
    sum = sum * r + 1;
    sum = sum * r + 1;
    memcpy(&power, &shifted, sizeof power);
    memcpy(&u, &sum, sizeof u);
    u += power << bits;
    memcpy(&sum, &u, sizeof sum);
    return sum;
}

FO_INLINE REAL NAME(fo_abs)(REAL x) {
#ifdef FO_DOUBLE
    return __builtin_fabs(x);
#else
    return __builtin_fabsf(x);
#endif
}

/* 2 atanh(s) by its series, 0 <= s <= 1/3: log(1 + u) for s = u / (2 + u). */
FO_INLINE REAL NAME(fo_atanh2)(REAL s) {
    REAL q = s * s, sum = (REAL)(2 / 13.0);
#ifdef FO_DOUBLE
    sum = 2 / 31.0;
    sum = sum * q + 2 / 29.0;
    sum = sum * q + 2 / 27.0;
    sum = sum * q + 2 / 25.0;
    sum = sum * q + 2 / 23.0;
    sum = sum * q + 2 / 21.0;
    sum = sum * q + 2 / 19.0;
    sum = sum * q + 2 / 17.0;
    sum = sum * q + 2 / 15.0;
    sum = sum * q + 2 / 13.0;
#endif
    sum = sum * q + (REAL)(2 / 11.0);
    sum = sum * q + (REAL)(2 / 9.0);
    sum = sum * q + (REAL)(2 / 7.0);
    sum = sum * q + (REAL)(2 / 5.0);
    sum = sum * q + (REAL)(2 / 3.0);
    sum = sum * q + 2;
    return s * sum;
}

/* n rows, n a multiple of 16 up to FO_CHUNK: e is z (the margins) on entry and s dloss/dz on
   return; t the targets, s the weights (0 for absent rows); v becomes s loss. */
FO_APART void NAME(fo_loss)(int loss, REAL eps, int n, REAL *restrict e,
                            const REAL *restrict t, const REAL *restrict s, REAL *restrict v) {
    switch (loss) {
    case FO_SQUARED: /* (z - t)^2 / 2 */
        EACH_ROW(n) {
            REAL r = e[i] - t[i];
            e[i] = s[i] * r;
            v[i] = (REAL)0.5 * (s[i] * r) * r;
        }
        break;
    case FO_HUBER: /* r^2 / 2 up to eps, then eps |r| - eps^2 / 2 */
        EACH_ROW(n) {
            REAL r = e[i] - t[i], c = r > eps ? eps : r < -eps ? -eps : r;
            e[i] = s[i] * c;
            v[i] = s[i] * c * (r - (REAL)0.5 * c);
        }
        break;
    case FO_EPSILON: /* max(0, |r| - eps) */
        EACH_ROW(n) {
            REAL r = e[i] - t[i], c = r > eps ? r - eps : r < -eps ? r + eps : 0;
            e[i] = c > 0 ? s[i] : c < 0 ? -s[i] : 0;
            v[i] = s[i] * (c > 0 ? c : -c);
        }
        break;
    case FO_SQUARED_EPSILON: /* max(0, |r| - eps)^2 */
        EACH_ROW(n) {
            REAL r = e[i] - t[i], c = r > eps ? r - eps : r < -eps ? r + eps : 0;
            e[i] = 2 * s[i] * c;
            v[i] = s[i] * c * c;
        }
        break;
    case FO_LOG: /* log(1 + exp(-t z)), t = -1 or 1; one division serves slope and logarithm */
        EACH_ROW(n) {
            REAL m = -NAME(fo_abs)(e[i] * t[i]);
            v[i] = m > FO_LOWEST ? m : FO_LOWEST; /* apart, lest the loop below gets branches */
        }
        EACH_ROW(n) {
            REAL m = e[i] * t[i], a = NAME(fo_exp)(v[i]), r = 1 / ((1 + a) * (2 + a));
            v[i] = s[i] * ((REAL)0.5 * (NAME(fo_abs)(m) - m) + NAME(fo_atanh2)(a * ((1 + a) * r)));
            e[i] = -t[i] * s[i] * ((2 + a) * r) * (m < 0 ? 1 : a);
        }
        break;
    case FO_HINGE: /* max(0, 1 - t z) */
        EACH_ROW(n) {
            REAL m = 1 - e[i] * t[i];
            e[i] = m > 0 ? -t[i] * s[i] : 0;
            v[i] = m > 0 ? s[i] * m : 0;
        }
        break;
    case FO_SQUARED_HINGE: /* max(0, 1 - t z)^2 */
        EACH_ROW(n) {
            REAL m = 1 - e[i] * t[i], c = m > 0 ? m : 0;
            e[i] = -2 * t[i] * s[i] * c;
            v[i] = s[i] * c * c;
        }
        break;
    case FO_MODIFIED_HUBER: /* max(0, 1 - t z)^2 down to t z = -1, then -4 t z */
        EACH_ROW(n) {
            REAL m = e[i] * t[i], c = m < 1 ? 1 - m : 0;
            e[i] = m >= -1 ? -2 * t[i] * s[i] * c : -4 * t[i] * s[i];
            v[i] = m >= -1 ? s[i] * c * c : -4 * s[i] * m;
        }
        break;
    default: /* perceptron: max(0, -t z) */
        EACH_ROW(n) {
            REAL m = e[i] * t[i];
            e[i] = m <= 0 ? -t[i] * s[i] : 0;
            v[i] = m <= 0 ? -s[i] * m : 0;
        }
    }
}

/* Cross-entropy of n rows over k outputs, as fo_loss; z is (k, n), t the class numbers. */
FO_APART void NAME(fo_softmax)(ptrdiff_t k, int n, REAL *restrict z, const REAL *restrict t,
                               const REAL *restrict s, REAL *restrict v) {
    REAL top[FO_CHUNK], sum[FO_CHUNK], hit[FO_CHUNK];
    EACH_ROW(n) top[i] = z[i], sum[i] = 0, hit[i] = 0;
    for (ptrdiff_t c = 1; c < k; c++) {
        const REAL *zc = z + n * c;
        EACH_ROW(n) top[i] = zc[i] > top[i] ? zc[i] : top[i];
    }
    for (ptrdiff_t c = 0; c < k; c++) {
        REAL *zc = z + n * c;
        EACH_ROW(n) {
            REAL m = zc[i] - top[i];
            hit[i] = t[i] == (REAL)c ? m : hit[i];
            zc[i] = m > FO_LOWEST ? m : FO_LOWEST;
        }
        EACH_ROW(n) {
            zc[i] = NAME(fo_exp)(zc[i]);
            sum[i] += zc[i];
        }
    }
    for (int i = 0; i < n; i++) { /* log(sum) = its power of two, and the logarithm of the rest */
        int power;
        REAL part = (REAL)(2 * frexp((double)sum[i], &power)) - 1; /* 0 <= part < 1 */
        v[i] = s[i] * ((REAL)((power - 1) * 0.6931471805599453) +
                       NAME(fo_atanh2)(part / (2 + part)) - hit[i]);
        sum[i] = s[i] / sum[i];
    }
    for (ptrdiff_t c = 0; c < k; c++) {
        REAL *zc = z + n * c;
        EACH_ROW(n) zc[i] = zc[i] * sum[i] - (t[i] == (REAL)c ? s[i] : 0);
    }
}
#undef EACH_ROW
#undef FO_LOWEST

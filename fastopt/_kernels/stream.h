/* Copy a tile from L1 to memory, with non-temporal stores where asked: they spare the read of the
   destination's lines, which for a result larger than the caches is bandwidth wasted. */
#ifndef FO_STREAM
#define FO_STREAM
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define FO_STREAM_WIDTH 64
#define FO_STREAM_ONE(d, s) _mm512_stream_si512((__m512i *)(d), _mm512_loadu_si512(s))
#elif defined(__AVX__)
#define FO_STREAM_WIDTH 32
#define FO_STREAM_ONE(d, s) _mm256_stream_si256((__m256i *)(d), _mm256_loadu_si256((const __m256i *)(s)))
#elif defined(__SSE2__)
#define FO_STREAM_WIDTH 16
#define FO_STREAM_ONE(d, s) _mm_stream_si128((__m128i *)(d), _mm_loadu_si128((const __m128i *)(s)))
#endif

static inline void fo_stream(void *target, const void *source, size_t n)
{
#ifdef FO_STREAM_WIDTH
    char *d = (char *)target;
    const char *s = (const char *)source;
    size_t head = (size_t)(-(uintptr_t)d) & 63;
    if (head > n)
        head = n;
    memcpy(d, s, head);
    d += head, s += head, n -= head;
    for (; n >= FO_STREAM_WIDTH; n -= FO_STREAM_WIDTH, d += FO_STREAM_WIDTH, s += FO_STREAM_WIDTH)
        FO_STREAM_ONE(d, s);
    memcpy(d, s, n);
#else
    memcpy(target, source, n);
#endif
}

/* Make the streamed stores visible to the other threads. */
static inline void fo_stream_fence(void)
{
#ifdef FO_STREAM_WIDTH
    _mm_sfence();
#endif
}
#endif

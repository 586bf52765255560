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

/* A window on a result that is made in order and leaves in whole lines, whatever its alignment:
   bytes [done, fill) of the window still have to go to `line`, a multiple of 64; the first `lead`
   bytes are somebody else's. Lines leave one block after they were made: a load from a store that
   is still on its way would wait. */
typedef struct { char *line, *window; size_t lead, done, fill; } fo_window;

static inline void fo_push(fo_window *w, size_t upto)
{
    if (w->lead && upto >= 64) {
        memcpy(w->line + w->lead, w->window + w->lead, 64 - w->lead);
        w->lead = 0, w->done = 64;
    }
    for (; w->done + 64 <= upto; w->done += 64)
#ifdef FO_STREAM_WIDTH
        for (size_t j = w->done; j < w->done + 64; j += FO_STREAM_WIDTH)
            FO_STREAM_ONE(w->line + j, w->window + j);
#else
        memcpy(w->line + w->done, w->window + w->done, 64);
#endif
}

/* Take in n bytes; a window that could not hold n more after that starts at its front again. */
static inline void fo_took(fo_window *w, size_t n, size_t room)
{
    fo_push(w, w->fill);
    w->fill += n;
    if (w->fill + n > room) {
        fo_push(w, w->fill);
        memcpy(w->window, w->window + w->done, 64);
        w->line += w->done, w->fill -= w->done, w->done = 0;
    }
}

static inline void fo_close(fo_window *w)
{
    fo_push(w, w->fill);
    size_t from = w->done + w->lead;
    memcpy(w->line + from, w->window + from, w->fill - from);
}

/* Make the streamed stores visible to the other threads. */
static inline void fo_stream_fence(void)
{
#ifdef FO_STREAM_WIDTH
    _mm_sfence();
#endif
}
#endif

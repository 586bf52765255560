"""A formula along an array with narrow state, decoded a line at a time in front of the formula and
encoded behind it (``codes.h`` says what the numbers mean).

The codes of a block need its largest value first: a block is encoded while the next one takes its
step, so that the instructions of both fill each other's gaps.
"""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memset

from fastopt._kernels.update.codes cimport *
from fastopt._kernels.update.stretch cimport *


cdef inline void wide_line(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g, float* a, float* b,
    float* c, float* new_a, float* new_b, float* new_c, const Scalars32* s,
) noexcept nogil:
    """One line whose state has been decoded; the new state goes to lines of its own."""
    cdef float w, x, s0 = 0, s1 = 0, s2 = 0
    cdef int j
    for j in range(LINE):
        w = p[j]
        x = s.scale * g[j]
        if decays:
            x = x + s.coupled * w
        if sign0:
            s0 = a[j]
        if sign1:
            s1 = b[j]
        if sign2:
            s2 = c[j]
        (<Formula32> formula)(&w, x, &s0, &s1, &s2, s)
        p[j] = w
        if sign0:
            new_a[j] = s0
        if sign1:
            new_b[j] = s1
        if sign2:
            new_c[j] = s2


cdef inline void decode_word_line(
    int sign, int k, const Stretch* a, Py_ssize_t at, float* line
) noexcept nogil:
    if sign:
        if a.far and at % (2 * LINE) == 0:
            prefetch_write(<const char*> a.state[k] + 2 * at + AHEAD // 2)
        decode_words(line, <const uint16_t*> a.state[k] + at)


cdef inline void encode_word_line(
    int sign, int k, const Stretch* a, Py_ssize_t i, const float* line, uint32_t* noise
) noexcept nogil:
    cdef Py_ssize_t at = a.first + i
    if sign == SIGNED:
        encode_words(<uint16_t*> a.state[k] + i, line)
    elif sign == POSITIVE:
        if at % UNIT == 0 or i == 0:
            noise[0] = phase_of(a.key, a.turn, at // UNIT, k, False) + (
                <uint32_t> (at % UNIT) * GOLDEN
            )
        encode_words_noisy(<uint16_t*> a.state[k] + i, line, noise[0])
        noise[0] += LINE * GOLDEN


cdef inline void word_lines(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g,
    const Stretch* stretch, const Scalars32* of_step,
) noexcept nogil:
    """Whole lines with bfloat16 state."""
    cdef Scalars32 s = of_step[0]
    cdef Stretch own = stretch[0]  # local, so that no store of a code can change it
    cdef const Stretch* a = &own
    cdef Line old[STATES]
    cdef Line new[STATES]
    cdef uint32_t noise0 = 0, noise1 = 0, noise2 = 0
    cdef Py_ssize_t i = 0
    while i < a.n:
        if a.far:
            prefetch(<const char*> (g + i) + AHEAD)
            prefetch_write(<const char*> (p + i) + AHEAD)
        decode_word_line(sign0, 0, a, i, old[0].at)
        decode_word_line(sign1, 1, a, i, old[1].at)
        decode_word_line(sign2, 2, a, i, old[2].at)
        wide_line(
            formula, sign0, sign1, sign2, decays, p + i, g + i, old[0].at, old[1].at, old[2].at,
            new[0].at, new[1].at, new[2].at, &s,
        )
        encode_word_line(sign0, 0, a, i, new[0].at, &noise0)
        encode_word_line(sign1, 1, a, i, new[1].at, &noise1)
        encode_word_line(sign2, 2, a, i, new[2].at, &noise2)
        i += LINE


cdef struct Spare:  # room for codes that nobody needs
    char at[UNIT]

cdef struct Block:  # one array's 8-bit state between a block's step and its encoding
    float unit  # of the codes that it had
    float inverse  # of the scale of those that it gets
    const float* shifts  # of its next line
    Tops tops


cdef inline void begin_block(
    int sign, int k, const Stretch* a, Py_ssize_t b, Block* block
) noexcept nogil:
    if sign:
        block.unit = unit_of(a.scales[k][b])
        clear_tops(&block.tops)


cdef inline void end_block(
    int sign, int k, const Stretch* a, Py_ssize_t b, Block* block
) noexcept nogil:
    """Block b has taken its step: its scale, and what its encoding needs."""
    if sign:
        a.scales[k][b] = scale_of(&block.tops)
        block.inverse = inverse_of(a.scales[k][b])
        block.shifts = shifts_of(
            phase_of(a.key, a.turn, a.first // UNIT + b, k, sign == SIGNED)
        )


cdef inline void raise_block(int sign, const float* line, Block* block) noexcept nogil:
    if sign:
        raise_tops(&block.tops, line, sign == SIGNED)


cdef inline void ask_ahead_codes(int sign, int k, const Stretch* a, Py_ssize_t at) noexcept nogil:
    cdef Py_ssize_t i = 0
    if sign:
        while i < UNIT:
            prefetch_write(<const char*> a.state[k] + at + AHEAD // 4 + i)
            i += 64


cdef inline void decode_code_line(
    int sign, int k, const Stretch* a, Py_ssize_t at, float* line, const Block* block
) noexcept nogil:
    if sign:
        decode_codes(line, <const char*> a.state[k] + at, block.unit, sign == SIGNED)


cdef inline void encode_code_line(
    int sign, char* codes, const float* values, Block* block
) noexcept nogil:
    if sign:
        encode_codes(codes, values, block.inverse, block.shifts, sign == SIGNED)
        block.shifts += LINE


cdef inline char* codes_at(const Stretch* a, int k, Py_ssize_t b, Spare* spare) noexcept nogil:
    """Where the codes of block b belong; those of none before the first go to waste."""
    return <char*> a.state[k] + b * UNIT if b >= 0 else spare.at


cdef inline void code_lines(
    void* formula, int sign0, int sign1, int sign2, bint decays, f32 p, f32 g,
    const Stretch* stretch, const Scalars32* of_step,
) noexcept nogil:
    """Whole units with 8-bit state. There is no branch in the loop that steps and encodes, so that
    the compiler keeps its constants in registers."""
    cdef Scalars32 s = of_step[0]
    cdef Stretch own = stretch[0]
    cdef const Stretch* a = &own
    cdef Values both[2][STATES]  # between their step and their encoding
    cdef Line old[STATES]
    cdef Spare spare
    cdef Block block0, block1, block2
    cdef Py_ssize_t b, blocks = a.n // UNIT, i, j
    cdef Values* now
    cdef Values* before
    cdef char* codes0
    cdef char* codes1
    cdef char* codes2
    codes0 = codes1 = codes2 = spare.at
    now = before = &both[1][0]
    memset(both[1], 0, sizeof(both[1]))
    memset(&block0, 0, sizeof(Block))
    memset(&block1, 0, sizeof(Block))
    memset(&block2, 0, sizeof(Block))
    block0.shifts = block1.shifts = block2.shifts = shifts_of(0)
    for b in range(blocks + 1):
        now, before = &both[b & 1][0], &both[~b & 1][0]
        if b > 0:
            end_block(sign0, 0, a, b - 1, &block0)
            end_block(sign1, 1, a, b - 1, &block1)
            end_block(sign2, 2, a, b - 1, &block2)
        codes0, codes1 = codes_at(a, 0, b - 1, &spare), codes_at(a, 1, b - 1, &spare)
        codes2 = codes_at(a, 2, b - 1, &spare)
        if b == blocks:
            break
        begin_block(sign0, 0, a, b, &block0)
        begin_block(sign1, 1, a, b, &block1)
        begin_block(sign2, 2, a, b, &block2)
        i = b * UNIT
        if a.far:
            ask_ahead_codes(sign0, 0, a, i)
            ask_ahead_codes(sign1, 1, a, i)
            ask_ahead_codes(sign2, 2, a, i)
        j = 0
        while j < UNIT:
            prefetch(<const char*> (g + i + j) + AHEAD)
            prefetch_write(<const char*> (p + i + j) + AHEAD)
            decode_code_line(sign0, 0, a, i + j, old[0].at, &block0)
            decode_code_line(sign1, 1, a, i + j, old[1].at, &block1)
            decode_code_line(sign2, 2, a, i + j, old[2].at, &block2)
            wide_line(
                formula, sign0, sign1, sign2, decays, p + i + j, g + i + j,
                old[0].at, old[1].at, old[2].at,
                now[0].at + j, now[1].at + j, now[2].at + j, &s,
            )
            raise_block(sign0, now[0].at + j, &block0)
            raise_block(sign1, now[1].at + j, &block1)
            raise_block(sign2, now[2].at + j, &block2)
            encode_code_line(sign0, codes0 + j, before[0].at + j, &block0)
            encode_code_line(sign1, codes1 + j, before[1].at + j, &block1)
            encode_code_line(sign2, codes2 + j, before[2].at + j, &block2)
            j += LINE
    j = 0
    while j < UNIT:
        encode_code_line(sign0, codes0 + j, before[0].at + j, &block0)
        encode_code_line(sign1, codes1 + j, before[1].at + j, &block1)
        encode_code_line(sign2, codes2 + j, before[2].at + j, &block2)
        j += LINE

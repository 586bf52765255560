"""Lines of 16 floats from and to narrow state (codes.h)."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "update/codes.h" nogil:
    void decode_codes "fo_decode_codes" (float* line, const void* codes, float unit, bint signed_)
    void encode_codes "fo_encode_codes" (
        void* codes, const float* line, float inverse, const float* shifts, bint signed_
    )
    void decode_words "fo_decode_words" (float* line, const void* words)
    void encode_words "fo_encode_words" (void* words, const float* line)
    void encode_words_noisy "fo_encode_words_noisy" (
        void* words, const float* line, uint32_t noise
    )
    ctypedef struct Line "fo_line":  # aligned
        float at[16]
    ctypedef struct Values "fo_block":  # of a unit, aligned
        float at[256]
    ctypedef struct Tops "fo_tops":
        pass
    void clear_tops "fo_clear_tops" (Tops* tops)
    void raise_tops "fo_raise_tops" (Tops* tops, const float* line, bint signed_)
    float scale_of "fo_scale_of" (const Tops* tops)
    float inverse_of "fo_inverse_of" (float scale)
    float unit_of "fo_unit_of" (float scale)
    uint32_t phase_of "fo_phase_of" (
        uint64_t key, uint64_t turn, uint64_t block, int state, bint signed_
    )
    const float* shifts_of "fo_shifts_of" (uint32_t phase)  # of a block, for encode_codes
    uint32_t GOLDEN "FO_GOLDEN"

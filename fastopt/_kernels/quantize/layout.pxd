"""Which elements share a scale, walked in order.

Two loops cover every layout (``depth``, ``width``, ``group``):
runs: outer blocks of ``depth`` elements are cut into runs of ``width``, one scale per run; with
``group`` each outer block has its own scales. rows: rows of ``width`` elements meet a row of
scales, changed after ``group`` rows and at the end of an outer block of ``depth`` rows.
"""

cdef struct Layout:
    bint rows
    Py_ssize_t depth
    Py_ssize_t width
    Py_ssize_t group


cdef struct Place:  # where an element stands in its layout
    Py_ssize_t outer  # block
    Py_ssize_t inside  # runs: element, rows: row of the block
    Py_ssize_t column  # rows: element of the row
    Py_ssize_t run  # runs: run of the block
    Py_ssize_t parts  # scales (runs) or rows of scales of a block


cdef inline Place place_of(Py_ssize_t i, Layout lay) noexcept nogil:
    cdef Place p
    if lay.rows:
        p.inside = i // lay.width
        p.column = i - p.inside * lay.width
        p.parts = (lay.depth + lay.group - 1) // lay.group
    else:
        p.inside = i
        p.column = 0
        p.parts = (lay.depth + lay.width - 1) // lay.width
    p.run = 0
    p.outer = p.inside // lay.depth
    p.inside -= p.outer * lay.depth
    if not lay.rows:
        p.run = p.inside // lay.width
    return p


cdef inline Py_ssize_t take(
    Place* p, Layout lay, Py_ssize_t most, Py_ssize_t* scale
) noexcept nogil:
    """Elements, at most ``most``, up to the end of the run or row at ``p``; ``scale`` gets the
    index of their (first) scale; ``p`` moves on."""
    cdef Py_ssize_t part, n
    if lay.rows:
        n = min(most, lay.width - p.column)
        part = p.outer * p.parts + p.inside // lay.group
        scale[0] = part * lay.width + p.column
        p.column += n
        if p.column == lay.width:
            p.column = 0
            p.inside += 1
    else:
        part = min((p.run + 1) * lay.width, lay.depth)  # the run's end
        n = min(most, part - p.inside)
        scale[0] = (p.outer * p.parts if lay.group else 0) + p.run
        p.inside += n
        p.run += p.inside == part
    if p.inside == lay.depth:
        p.inside = 0
        p.run = 0
        p.outer += 1
    return n


cdef inline Py_ssize_t scales_of(Py_ssize_t n, Layout lay) except -1:
    """Scales that a layout of n elements needs; refuses one that does not fit."""
    cdef Py_ssize_t block = lay.depth * lay.width if lay.rows else lay.depth
    cdef Py_ssize_t blocks
    if lay.depth < 1 or lay.width < 1 or lay.group < (1 if lay.rows else 0) or n % block:
        from fastopt.errors import ArrayError

        raise ArrayError(f"layout: {lay} does not divide {n} elements")
    blocks = n // block
    if lay.rows:
        return blocks * ((lay.depth + lay.group - 1) // lay.group) * lay.width
    return (blocks if lay.group else 1) * ((lay.depth + lay.width - 1) // lay.width)

"""`scdd._csr` against plain NumPy, over random matrices with everything that files may hold."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdd import _csr

VALUES = [np.float32, np.float64, np.int32, np.int64, np.uint16, np.uint8]
INDICES = [np.int32, np.int64, np.uint16]


class Matrix(NamedTuple):
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    n_vars: int

    @property
    def csr(self):
        return self.data, self.indices, self.indptr

    @property
    def n_rows(self):
        return len(self.indptr) - 1

    def dense(self):
        """Duplicates added, float64."""
        out = np.zeros((self.n_rows, self.n_vars))
        rows = np.repeat(np.arange(self.n_rows), np.diff(self.indptr))
        np.add.at(out, (rows, self.indices.astype(np.int64)), self.data.astype(np.float64))
        return out


def make_matrix(seed, n_rows, n_vars, density, value=np.float32, index=np.int32):
    """Unsorted, with duplicates, explicit zeros and empty rows."""
    rng = np.random.default_rng(seed)
    sizes = (
        rng.poisson(density * n_vars, n_rows) * (rng.random(n_rows) > 0.2)
        if n_vars
        else np.zeros(n_rows, int)
    )
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = rng.poisson(1.5, indptr[-1])
    if np.issubdtype(value, np.floating):
        data = data + rng.integers(0, 4, len(data)) / 4
    return Matrix(
        data.astype(value), rng.integers(0, max(n_vars, 1), indptr[-1]).astype(index), indptr, n_vars
    )


matrices = st.builds(
    make_matrix,
    seed=st.integers(0, 2**31),
    n_rows=st.integers(0, 120),
    n_vars=st.integers(0, 60),
    density=st.sampled_from([0.05, 0.4, 1.5]),
    value=st.sampled_from(VALUES),
    index=st.sampled_from(INDICES),
)


def gather(matrix, rows, column, n_columns, **options):
    out = np.full((len(rows), n_columns), np.nan, dtype=np.float32)
    totals = _csr.gather_dense(*matrix.csr, rows, column, out, **options)
    return out, totals


def choose(matrix, rng):
    """Rows with repeats, and a gene order that is not the file's."""
    size = int(rng.integers(0, 150)) if matrix.n_rows else 0
    rows = rng.integers(0, max(matrix.n_rows, 1), size).astype(np.int64)
    chosen = rng.permutation(matrix.n_vars)[: int(rng.integers(0, matrix.n_vars + 1))]
    column = np.full(matrix.n_vars, -1, dtype=np.int32)
    column[chosen] = np.arange(len(chosen))
    return rows, chosen, column


@settings(max_examples=150, deadline=None)
@given(
    matrices,
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 1e4]),
    st.booleans(),
    st.booleans(),
)
def test_gather_dense_is_the_formula(matrix, seed, log1p, target_sum, standardise, given_totals):
    rng = np.random.default_rng(seed)
    rows, chosen, column = choose(matrix, rng)
    mean, inverse_std = (
        (rng.normal(size=(2, len(chosen))) + 2).astype(np.float32) if standardise else (None, None)
    )
    clip = float(rng.choice([0.0, 1.5])) if standardise else 0.0
    full = matrix.dense()[rows]
    totals = full.sum(1) if not given_totals else rng.integers(0, 3, len(rows)) * 7.0
    expected = full[:, chosen]
    if target_sum:
        scale = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals != 0)
        expected = expected * scale[:, None]
    if log1p:
        expected = np.log1p(expected)
    if standardise:
        expected = (expected - mean) * inverse_std
    if clip:
        expected = expected.clip(-clip, clip)
    options = {
        "target_sum": target_sum,
        "log1p": log1p,
        "mean": mean,
        "inverse_std": inverse_std,
        "clip": clip,
    }
    options["totals"] = totals if given_totals else None
    results = [gather(matrix, rows, column, len(chosen), threads=threads, **options) for threads in (1, 2, 3)]
    # mean, scale and difference each round once in float32
    np.testing.assert_allclose(
        results[0][0], expected, rtol=2e-6, atol=1e-6 * max(1.0, target_sum * standardise)
    )
    np.testing.assert_allclose(results[0][1], totals, rtol=1e-13)
    for out, used in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(used, results[0][1])


def test_duplicates_meet_before_log1p_even_when_they_cancel():
    data = np.array([3, -3, 5, 0, 2, 2], dtype=np.float32)
    matrix = Matrix(data, np.array([1, 1, 1, 0, 0, 0], dtype=np.int32), np.array([0, 6]), 2)
    out, totals = gather(matrix, np.array([0]), np.array([0, 1], np.int32), 2, target_sum=18.0, log1p=True)
    assert totals[0] == 9
    np.testing.assert_allclose(out[0], np.log1p([8, 10]), rtol=1e-6)


def test_log1p_within_two_units_in_the_last_place_over_the_whole_range():
    x = np.concatenate([np.geomspace(1e-37, 1e29, 200_001), np.linspace(0, 30, 100_001)]).astype(np.float32)
    n = len(x)
    matrix = Matrix(x, np.zeros(n, np.int32), np.arange(n + 1), 1)
    out, _ = gather(matrix, np.arange(n), np.zeros(1, np.int32), 1, log1p=True)
    exact = np.log1p(x.astype(np.float64))
    assert (np.abs(out[:, 0] - exact) / np.spacing(exact.astype(np.float32))).max() < 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, -1.0, -2.0, 3e38])
def test_log1p_of_odd_values_is_numpys(value):
    data = np.array([1, value, 2], dtype=np.float32)
    matrix = Matrix(data, np.array([0, 1, 2], np.int32), np.array([0, 3]), 3)
    out, _ = gather(matrix, np.array([0]), np.arange(3, dtype=np.int32), 3, log1p=True)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(out[0], np.log1p(data), rtol=1e-6)


def test_a_row_of_odd_total_does_not_become_quietly_zero():
    matrix = Matrix(np.array([1, np.nan], np.float32), np.array([0, 1], np.int32), np.array([0, 2]), 2)
    out, _ = gather(matrix, np.array([0]), np.arange(2, dtype=np.int32), 2, target_sum=1e4)
    assert np.isnan(out).all()


def scipy_rows(matrix, rows, column, n_columns):
    """The rows in sorted form without duplicates, as scipy makes it; explicit zeros stay."""
    parts = []
    for row in rows:
        place = slice(matrix.indptr[row], matrix.indptr[row + 1])
        columns = column[matrix.indices[place].astype(np.int64)]
        parts.append((matrix.data[place][columns >= 0].astype(np.float32), columns[columns >= 0]))
    indptr = np.cumsum([0, *(len(columns) for _, columns in parts)])
    data = np.concatenate([values for values, _ in parts] + [np.empty(0, np.float32)])
    indices = np.concatenate([columns for _, columns in parts] + [np.empty(0, np.int32)])
    result = sparse.csr_matrix((data, indices, indptr), shape=(len(rows), n_columns))
    result.sum_duplicates()
    return result


@settings(max_examples=150, deadline=None)
@given(matrices, st.integers(0, 2**31), st.booleans())
def test_gather_csr_is_sorted_and_has_duplicates_added_up(matrix, seed, every_gene):
    rng = np.random.default_rng(seed)
    rows, chosen, column = choose(matrix, rng)
    if every_gene:
        chosen = column = np.arange(matrix.n_vars)
        options = {"column_of_gene": None, "n_vars": matrix.n_vars}
    else:
        options = {"column_of_gene": column}
    results = [_csr.gather_csr(*matrix.csr, rows, threads=threads, **options) for threads in (1, 2, 3)]
    data, indices, indptr, totals = results[0]
    assert [part.dtype.name for part in results[0]] == ["float32", "int32", "int64", "float64"]
    expected = scipy_rows(matrix, rows, column, len(chosen))
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(data, expected.data)
    np.testing.assert_allclose(totals, matrix.dense()[rows].sum(1), rtol=1e-13)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=100, deadline=None)
@given(matrices, st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 1e4]), st.booleans())
def test_gather_csr_transforms_as_gather_dense_does(matrix, seed, target_sum, log1p):
    rows, chosen, column = choose(matrix, np.random.default_rng(seed))
    options = {"target_sum": target_sum, "log1p": log1p, "threads": 2}
    out, totals = gather(matrix, rows, column, len(chosen), **options)
    data, indices, indptr, sums = _csr.gather_csr(*matrix.csr, rows, column, **options)
    made = sparse.csr_matrix((data, indices, indptr), shape=out.shape)
    np.testing.assert_array_equal(made.toarray(), out)  # bit by bit: one order of additions, one logarithm
    np.testing.assert_array_equal(sums, totals)


@pytest.mark.parametrize(("data_room", "indices_room"), [(40, 40), (3, 3), (40, 2), (2, 40), (0, 0), (3, 2)])
def test_buffers_are_used_where_they_are_large_enough(data_room, indices_room):
    data_buffer = np.full(data_room, 7, np.float32)
    indices_buffer = np.full(indices_room, 7, np.int32)
    rows = np.array([1, 0])
    data, indices, indptr, totals = _csr.gather_csr(
        *SMALL.csr, rows, ALL, data_buffer=data_buffer, indices_buffer=indices_buffer
    )
    np.testing.assert_array_equal(data, [1, 1, 1])
    np.testing.assert_array_equal(indices, [1, 2, 0])
    np.testing.assert_array_equal(indptr, [0, 2, 3])
    np.testing.assert_array_equal(totals, [2, 1])
    for made, buffer in ((data, data_buffer), (indices, indices_buffer)):
        assert np.shares_memory(made, buffer) == (len(buffer) >= 3)
        if len(buffer) >= 3:
            assert made.__array_interface__["data"][0] == buffer.__array_interface__["data"][0]
            assert (buffer[3:] == 7).all()
        else:
            assert (buffer == 7).all()


def test_buffers_that_cannot_be_used_are_refused():
    for changed, error, message in [
        ({"data_buffer": np.zeros(9)}, TypeError, "data_buffer has dtype float64"),
        ({"indices_buffer": np.zeros(9, np.int64)}, TypeError, "indices_buffer has dtype int64"),
        ({"data_buffer": read_only(np.zeros(9, np.float32))}, ValueError, "data_buffer is read-only"),
        ({"data_buffer": np.zeros((3, 3), np.float32)}, ValueError, "data_buffer has 2 dimensions"),
        ({"indices_buffer": np.zeros(18, np.int32)[::2]}, ValueError, "indices_buffer is strided"),
        ({"target_sum": -1.0}, ValueError, "target_sum is -1"),
    ]:
        with pytest.raises(error, match=message):
            _csr.gather_csr(*SMALL.csr, np.array([0, 1]), ALL, **changed)


def test_duplicates_that_shrink_rows_leave_no_gaps():
    rng = np.random.default_rng(0)
    n = 500
    sizes = rng.integers(0, 40, n)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    indices = rng.integers(0, 7, indptr[-1]).astype(np.int32)
    matrix = Matrix(rng.integers(1, 9, indptr[-1]).astype(np.float32), indices, indptr, 7)
    rows = rng.integers(0, n, 900)
    expected = scipy_rows(matrix, rows, np.arange(7), 7)
    for threads in (1, 4):
        data, indices, indptr, _ = _csr.gather_csr(*matrix.csr, rows, None, 7, threads=threads)
        made = sparse.csr_matrix((data, indices, indptr), shape=(len(rows), 7))
        assert made.has_canonical_format
        assert (made != expected).nnz == 0
        assert len(data) == expected.nnz


def interesting_floats():
    """Everything that rounding to 16 bits could get wrong, both signs."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)  # up to infinity
    finite = halves[np.isfinite(halves)]
    ties = (finite[1:] + finite[:-1]) / 2
    brains = (np.arange(0x7F81, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    brain_ties = (brains[1:-1] + brains[:-2]) / 2
    ends = [65_504, 65_519.996, 65_520, 65_536, 3.3e38, 3.4028235e38, 1e-45, 2.0**-24, 2.0**-25, 2.0**-14]
    exact = np.concatenate([halves, ties, brains, brain_ties, ends, np.geomspace(1e-45, 3e38, 20_000)])
    with np.errstate(over="ignore"):
        values = exact.astype(np.float32)
        values = np.concatenate(
            [values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(0))]
        )
    return np.concatenate([values, -values, np.array([np.nan, -np.nan], np.float32)])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_halves_are_rounded_as_numpy_and_torch_do(kind):
    values = interesting_floats()
    n = len(values)
    matrix = Matrix(values, np.zeros(n, np.int32), np.arange(n + 1), 1)
    bits = np.uint16 if kind == "bfloat16" else np.float16
    for threads in (1, 3):
        out = np.full((n, 1), 77, dtype=bits)
        options = {"bfloat16": kind == "bfloat16", "threads": threads}
        _csr.gather_dense(*matrix.csr, np.arange(n), np.zeros(1, np.int32), out, **options)
        # A sum with the zero that the row begins as turns -0 into 0, in float32 as well.
        with np.errstate(over="ignore"):
            if kind == "float16":
                expected = (values + 0.0).astype(np.float16).view(np.uint16)
                nan = np.isnan(out[:, 0])
            else:
                torch = pytest.importorskip("torch")
                cast = torch.from_numpy(values + 0.0).to(torch.bfloat16)
                expected = cast.view(torch.int16).numpy().view(np.uint16)
                nan = np.isnan((out[:, 0].astype(np.uint32) << 16).view(np.float32))
        np.testing.assert_array_equal(nan, np.isnan(values))
        np.testing.assert_array_equal(out[~nan, 0].view(np.uint16), expected[~nan])


@settings(max_examples=60, deadline=None)
@given(matrices, st.integers(0, 2**31), st.booleans())
def test_halves_are_the_cast_of_the_floats(matrix, seed, standardise):
    rng = np.random.default_rng(seed)
    rows, chosen, column = choose(matrix, rng)
    mean, inverse_std = (rng.normal(size=(2, len(chosen))) + 2).astype(np.float32)
    options = {"target_sum": 1e4, "log1p": True, "threads": 2}
    options |= {"mean": mean, "inverse_std": inverse_std, "clip": 3.0} if standardise else {}
    exact, totals = gather(matrix, rows, column, len(chosen), **options)
    out = np.full(exact.shape, np.nan, dtype=np.float16)
    np.testing.assert_array_equal(_csr.gather_dense(*matrix.csr, rows, column, out, **options), totals)
    np.testing.assert_array_equal(out, exact.astype(np.float16))
    brain = np.full(exact.shape, 0x7FFF, dtype=np.uint16)
    _csr.gather_dense(*matrix.csr, rows, column, brain, bfloat16=True, **options)
    widened = (brain.astype(np.uint32) << 16).view(np.float32)
    # Half a unit in the last of 8 places, at most.
    assert (np.abs(widened - exact) <= np.abs(exact) * 2.0**-8).all()


def test_outputs_of_other_types_are_refused():
    for out, bfloat16, message in [
        (np.zeros((2, 3), np.float16), True, "out has dtype float16, and must have uint16"),
        (np.zeros((2, 3), np.uint16), False, "out has dtype uint16, and must have float32"),
        (np.zeros((2, 3), ">f2"), False, "out has dtype"),
        (np.zeros((2, 3), np.int16), True, "out has dtype int16"),
    ]:
        with pytest.raises(TypeError, match=message):
            _csr.gather_dense(*SMALL.csr, np.array([0, 1]), ALL, out, bfloat16=bfloat16)


@settings(max_examples=60, deadline=None)
@given(matrices, st.integers(0, 2**31))
def test_row_totals_are_sums_over_all_genes(matrix, seed):
    rows, _, _ = choose(matrix, np.random.default_rng(seed))
    expected = matrix.dense().sum(1)
    np.testing.assert_allclose(_csr.row_totals(matrix.data, matrix.indptr, rows), expected[rows], rtol=1e-13)
    np.testing.assert_allclose(_csr.row_totals(matrix.data, matrix.indptr), expected, rtol=1e-13)


def test_totals_do_not_lose_counts_to_float32():
    data = np.full(1_000, 2**24 + 1, dtype=np.int64)
    assert _csr.row_totals(data, np.array([0, 1_000]))[0] == 1_000 * (2**24 + 1)


@settings(max_examples=150, deadline=None)
@given(matrices, st.integers(0, 2**31), st.booleans(), st.booleans(), st.booleans())
def test_column_moments_add_to_what_is_there(matrix, seed, scaled, log1p, clipped):
    rng = np.random.default_rng(seed)
    row_scale = rng.random(matrix.n_rows) + 0.5 if scaled else None
    clip_max = rng.random(matrix.n_vars) * 3 if clipped else None
    counts = matrix.dense()
    y = counts * row_scale[:, None] if scaled else counts
    y = np.log1p(y) if log1p else y
    y = np.minimum(y, clip_max) if clipped else y
    before = rng.random((3, matrix.n_vars))
    total, square, nonzero = (part.copy() for part in before)
    _csr.column_moments(*matrix.csr, matrix.n_vars, row_scale, log1p, clip_max, total, square, nonzero)
    np.testing.assert_allclose(total, before[0] + y.sum(0), rtol=1e-12)
    np.testing.assert_allclose(square, before[1] + (y**2).sum(0), rtol=1e-12)
    np.testing.assert_allclose(nonzero, before[2] + (counts != 0).sum(0), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_a_sound_matrix_is_valid(matrix):
    _csr.validate(matrix.indptr, matrix.indices, matrix.n_rows, max(matrix.n_vars, 1), len(matrix.data))


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([1, 2, 3], [0, 0, 0], r"indptr\[0\] is 1"),
        ([0, 2, 1], [0, 0, 0], "decreases at row 1: 2 is followed by 1"),
        ([0, 1, 2], [0, 0, 0], "ends at 2, but there are 3"),
        ([0, 1, 3], [0, 4, 9], r"indices\[1\] = 4 \(row 1\) lies outside 0..3"),
        ([0, 0, 3], [0, 1, -1], r"indices\[2\] = -1 \(row 1\)"),
    ],
)
def test_validate_names_the_first_fault(indptr, indices, message):
    with pytest.raises(ValueError, match=message):
        _csr.validate(np.array(indptr), np.array(indices, dtype=np.int32), 2, 4, 3)


def test_validate_checks_the_lengths():
    with pytest.raises(ValueError, match="indptr has 2 values, and must have 3"):
        _csr.validate(np.array([0, 0]), np.zeros(0, np.int32), 2, 4, 0)
    with pytest.raises(ValueError, match="indices has 1 values, and must have 2"):
        _csr.validate(np.array([0, 2]), np.zeros(1, np.int32), 1, 4, 2)


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([], (-1, -1, -1, True)),
        ([0, 1, 7], (-1, -1, -1, True)),
        ([0, 1.5, 7], (-1, -1, -1, False)),
        ([1, np.nan, np.nan], (1, -1, -1, True)),
        ([1, np.inf, -1, -2], (-1, 1, 2, True)),
        ([-np.inf, 1], (-1, 0, 0, True)),
    ],
)
def test_check_values(values, answer):
    for dtype in (np.float32, np.float64):
        assert _csr.check_values(np.array(values, dtype=dtype)) == answer


def test_check_values_of_integers():
    assert _csr.check_values(np.array([1, -1, -2], dtype=np.int64)) == (-1, -1, 1, True)
    assert _csr.check_values(np.array([1, 65_535], dtype=np.uint16)) == (-1, -1, -1, True)


SMALL = Matrix(np.ones(3, np.float32), np.array([0, 1, 2], np.int32), np.array([0, 1, 3]), 3)
ALL = np.arange(3, dtype=np.int32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("row", [-1, 2, 2**40])
def test_a_row_outside_is_named(row, threads):
    rows = np.array([0] * 100 + [row] + [-7] * 100)
    for call in (
        lambda: gather(SMALL, rows, ALL, 3, threads=threads),
        lambda: _csr.gather_csr(*SMALL.csr, rows, ALL, threads=threads),
        lambda: _csr.row_totals(SMALL.data, SMALL.indptr, rows),
    ):
        with pytest.raises(IndexError, match=rf"row {row} lies outside 0\.\.1"):
            call()


@pytest.mark.parametrize("gene", [-1, 3, 2**31 - 1])
def test_a_gene_outside_is_named(gene):
    bad = SMALL._replace(indices=np.array([0, gene, 2], np.int32))
    moments = [np.zeros(3) for _ in range(3)]
    for call in (
        lambda: gather(bad, np.array([0, 1]), ALL, 3),
        lambda: _csr.gather_csr(*bad.csr, np.array([0, 1]), ALL),
        lambda: _csr.gather_csr(*bad.csr, np.array([0, 1]), None, 3),
        lambda: _csr.column_moments(*bad.csr, 3, None, False, None, *moments),
    ):
        with pytest.raises(IndexError, match=rf"indices\[1\] = {gene} \(row 1\) lies outside 0\.\.2"):
            call()


@pytest.mark.parametrize("indptr", [[0, 1, 99], [0, -5, 3], [0, 4, 3]])
def test_a_damaged_indptr_cannot_reach_outside(indptr):
    bad = SMALL._replace(indptr=np.array(indptr))
    rows = np.array([0, 1])
    for call in (
        lambda: gather(bad, rows, ALL, 3),
        lambda: _csr.gather_csr(*bad.csr, rows, ALL),
        lambda: _csr.row_totals(bad.data, bad.indptr),
        lambda: _csr.column_moments(*bad.csr, 3, None, False, None, *[np.zeros(3) for _ in range(3)]),
    ):
        with pytest.raises(IndexError, match="indptr of row"):
            call()


@pytest.mark.parametrize("column", [-2, 3])
def test_a_column_outside_is_named(column):
    with pytest.raises(IndexError, match=rf"column_of_gene\[1\] = {column}"):
        gather(SMALL, np.array([0]), np.array([0, column, 1], np.int32), 3)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"data": np.ones(3, np.float16)}, TypeError, "data has dtype float16, .* cast it to float32"),
        ({"data": np.ones(3, ">f4")}, TypeError, "data has dtype >f4"),
        ({"data": np.ones(4, np.float32)}, ValueError, "indices has 3 values, and must have 4"),
        ({"data": np.ones(6, np.float32)[::2]}, ValueError, "data is strided"),
        ({"indices": np.ones(3, np.uint32)}, TypeError, "indices has dtype uint32"),
        ({"indptr": np.zeros(3, np.int32)}, TypeError, "indptr has dtype int32, and must have int64"),
        ({"indptr": np.zeros(0, np.int64)}, ValueError, "indptr is empty"),
        ({"rows": np.zeros(2, np.int32)}, TypeError, "rows has dtype int32"),
        ({"rows": np.zeros((1, 2), np.int64)}, ValueError, "rows has 2 dimensions, and must have 1"),
        ({"column_of_gene": np.zeros(3, np.int64)}, TypeError, "column_of_gene has dtype int64"),
        ({"out": np.zeros((2, 3))}, TypeError, "out has dtype float64"),
        ({"out": np.zeros((3, 3), np.float32)}, ValueError, "out has 3 rows, and must have 2"),
        ({"out": np.zeros((3, 2), np.float32).T}, ValueError, "out is strided"),
        ({"out": read_only(np.zeros((2, 3), np.float32))}, ValueError, "out is read-only"),
        ({"totals": np.zeros(3)}, ValueError, "totals has 3 values, and must have 2"),
        ({"totals": np.zeros(2, np.float32)}, TypeError, "totals has dtype float32"),
        ({"mean": np.zeros(2, np.float32)}, ValueError, "mean has 2 values, and must have 3"),
        ({"inverse_std": np.zeros(3)}, TypeError, "inverse_std has dtype float64"),
        ({"target_sum": -1.0}, ValueError, "target_sum is -1"),
        ({"target_sum": np.nan}, ValueError, "target_sum is nan"),
        ({"clip": -1.0}, ValueError, "clip is -1"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"rows": [0, 1]}, TypeError, "incompatible function arguments"),
    ],
)
def test_gather_dense_refuses(changed, error, message):
    arguments = {
        **{"data": SMALL.data, "indices": SMALL.indices, "indptr": SMALL.indptr, "rows": np.array([0, 1])},
        **{"column_of_gene": ALL, "out": np.zeros((2, 3), np.float32)},
    }
    _csr.gather_dense(**arguments)
    with pytest.raises(error, match=message):
        _csr.gather_dense(**{**arguments, **changed})


def test_the_other_functions_refuse_too():
    moments = [np.zeros(3) for _ in range(3)]
    with pytest.raises(ValueError, match="n_vars is needed"):
        _csr.gather_csr(*SMALL.csr, np.array([0]))
    with pytest.raises(ValueError, match="must have 4"):
        _csr.gather_csr(*SMALL.csr, np.array([0]), ALL, 4)
    with pytest.raises(ValueError, match="threads is 0"):
        _csr.gather_csr(*SMALL.csr, np.array([0]), ALL, threads=0)
    with pytest.raises(ValueError, match=r"clip_max\[0\] is -1"):
        _csr.column_moments(*SMALL.csr, 3, None, False, np.full(3, -1.0), *moments)
    with pytest.raises(ValueError, match="row_scale has 3 values, and must have 2"):
        _csr.column_moments(*SMALL.csr, 3, np.ones(3), False, None, *moments)
    with pytest.raises(ValueError, match="nonzero is read-only"):
        _csr.column_moments(*SMALL.csr, 3, None, False, None, *moments[:2], read_only(np.zeros(3)))
    with pytest.raises(ValueError, match="n_vars is -1"):
        _csr.gather_csr(*SMALL.csr, np.array([0]), None, -1)


def test_inputs_may_be_read_only_and_are_left_alone():
    arrays = [read_only(part.copy()) for part in SMALL.csr]
    totals = read_only(np.array([5.0, 5.0]))
    out = np.zeros((2, 3), np.float32)
    returned = _csr.gather_dense(*arrays, np.array([0, 1]), ALL, out, totals, 10.0)
    np.testing.assert_array_equal(out, [[2, 0, 0], [0, 2, 2]])
    assert returned is totals


def test_the_interpreter_runs_meanwhile():
    matrix = make_matrix(0, 2_000, 20_000, 0.05)
    rows = np.tile(np.arange(2_000), 20)
    column = np.zeros(20_000, dtype=np.int32)
    out = np.empty((len(rows), 1), dtype=np.float32)
    finished, steps, running = threading.Event(), [], threading.Event()

    def call():
        running.set()
        start = time.perf_counter()
        _csr.gather_dense(*matrix.csr, rows, column, out)
        steps.append(("end", start, time.perf_counter()))
        finished.set()

    ticks = []
    worker = threading.Thread(target=call)
    worker.start()
    running.wait()
    while not finished.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    worker.join()
    _, start, end = steps[0]
    inside = [tick for tick in ticks if start + 0.1 * (end - start) < tick < start + 0.9 * (end - start)]
    # With the lock held no tick could fall inside the call.
    assert len(inside) >= 3, f"{len(inside)} ticks in {end - start:.3f} s"

"""Counter-based noise: its statistics, its layouts, and that PyTorch and Triton draw the same numbers."""

from __future__ import annotations

import itertools

import pytest
import torch

from scdd.kernels._philox import as_seed, philox, philox_normal, philox_normal_quads

SEEDS = (0, 7, -3, 2**62 + 12_345)
FIRSTS = (0, 5, 2**32 - 3, 2**40 + 1)
LAYOUTS = {
    "one": lambda seed, first, n, dtype=torch.float32: philox_normal(seed, first, n, dtype),
    "four": lambda seed, first, n, dtype=torch.float32: philox_normal_quads(seed, first, (n // 8, 8), dtype),
}
LAYOUT = pytest.mark.parametrize("draw", LAYOUTS.values(), ids=LAYOUTS.keys())


def words_by_hand(seed, counter):
    """Philox 4x32-10 as the paper prints it, with Python's integers."""
    c, k = [counter % 2**32, counter // 2**32, 0, 0], [seed % 2**32, seed // 2**32 % 2**32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b // 2**32 ^ c[1] ^ k[0], b % 2**32, a // 2**32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_philox(seed):
    counters = [0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 1, 2**62]
    got = torch.stack(philox(torch.tensor(seed), torch.tensor(counters)), 1)
    assert got.tolist() == [words_by_hand(seed % 2**64, counter) for counter in counters]


def test_known_answer():
    """The test vector for counter and key zero that comes with the reference implementation, Random123."""
    got = [word.item() for word in philox(torch.tensor(0), torch.tensor(0))]
    assert got == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@LAYOUT
def test_is_standard_normal(device, draw):
    n = 2**20
    x = draw(torch.tensor(3, device=device), 0, n).double().flatten()
    # five standard errors each
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    exact = torch.special.ndtr(x.sort().values)
    ecdf = torch.arange(1, n + 1, device=device, dtype=torch.float64) / n
    # Kolmogorov and Smirnov, at about one in a hundred thousand
    assert (exact - ecdf).abs().max() < 2.5 / n**0.5
    assert x.abs().max() < 5.7


@LAYOUT
def test_neighbours_and_seeds_are_uncorrelated(device, draw):
    n = 2**18

    def noise(seed, first=0):
        return draw(torch.tensor(seed, device=device), first, n).double().flatten()

    x = noise(3)
    others = [noise(seed) for seed in (2, 4, 3 + 2**32, -3)] + [noise(3, n), noise(3, 2**32)]
    shifted = [x.roll(lag) for lag in (1, 2, 3, 4, 8, 10, 1000, 2000)]
    for other in others + shifted:
        assert abs((x * other).mean()) < 5 / n**0.5
        # independent, not only uncorrelated: sizes do not follow each other either
        assert abs(((x**2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / n**0.5


@LAYOUT
def test_counts_from_where_it_is_told(draw):
    """Also where the counter passes 32 bits."""
    seed = torch.tensor(11)
    # the layout of four: 8 columns are 2 counters
    step = 1 if draw(seed, 0, 8).ndim == 1 else 4
    for start in (0, 2**32 - 16):
        whole = draw(seed, start, 96).flatten()
        for skip in (8, 32, 88):
            part = draw(seed, start + skip // step, 96 - skip).flatten()
            assert torch.equal(part, whole[skip:])


def test_numbers_do_not_come_again_after_32_bits():
    seed = torch.tensor(11)
    assert not torch.isclose(philox_normal(seed, 0, 64), philox_normal(seed, 2**32, 64)).any()


def test_quads_of_each_row_are_whole():
    seed, columns = torch.tensor(5), 10
    rows = philox_normal_quads(seed, 40, (3, 7, columns))
    for number, (i, j) in enumerate(itertools.product(range(3), range(7))):
        assert torch.equal(rows[i, j], philox_normal_quads(seed, 40 + 3 * number, (1, 12))[0, :columns])
    # the first of four is the one that the other layout has
    assert torch.equal(rows.view(-1, columns)[:, 0], philox_normal(seed, 40, 63)[::3])


@LAYOUT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_the_same_numbers(draw, dtype):
    seed = torch.tensor(5)
    got = draw(seed, 0, 4096, dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), draw(seed, 0, 4096).to(dtype).float(), rtol=1e-6, atol=1e-6)


def test_a_seed_may_be_a_tensor():
    seed = as_seed(2**40 + 3, torch.device("cpu"))
    assert seed.dtype == torch.int64
    assert seed.shape == ()
    assert as_seed(torch.tensor([9]), torch.device("cpu")).item() == 9
    assert torch.equal(philox_normal(torch.tensor([9]), 0, 4), philox_normal(torch.tensor(9), 0, 4))


@pytest.mark.parametrize(
    ("seed", "kind", "message"),
    [
        (1.5, TypeError, "seed is a float; pass an int"),
        (True, TypeError, "seed is a bool"),
        (2**63, ValueError, "must fit 64 bits"),
        (torch.tensor(1, dtype=torch.int32), TypeError, r"seed has dtype torch\.int32; cast it"),
        (torch.tensor([1, 2]), ValueError, r"seed has shape \(2,\); give one number"),
        (torch.tensor(1, device="meta"), ValueError, "seed is on meta"),
    ],
)
def test_refuses_what_is_no_seed(seed, kind, message):
    with pytest.raises(kind, match=message):
        as_seed(seed, torch.device("cpu"))


# ------------------------------------------------------------------------------ in kernels


@pytest.fixture(scope="module")
def in_triton():
    """Give a function that draws `rows` x 16 numbers as ``tl.randn``, one and four a counter."""
    triton = pytest.importorskip("triton")
    from support import philox_kernels as kernels

    def draw(seed, first, rows):
        out = torch.full((3, rows, 16), torch.nan, device=seed.device)
        kernels.draw_kernel[(rows // 16,)](seed, *out, first, ROWS=16)
        return out

    assert triton
    return draw


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_pytorch_and_triton_draw_the_same(kernel_device, in_triton, seed, first):
    seed = torch.tensor(seed, device=kernel_device)
    theirs, one, four = in_triton(seed, first, 64)
    expected = philox_normal(seed, first, (64, 16))
    # angles are rounded at 2 pi, where a unit in the last place is 5e-7
    for got in (theirs, one):
        torch.testing.assert_close(got, expected, rtol=0, atol=4e-6)
    torch.testing.assert_close(four, philox_normal_quads(seed, first, (64, 16)), rtol=0, atol=4e-6)

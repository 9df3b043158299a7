"""Mixers and token maps against their formulas, written out head by head and step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from scdd.nn.branches import (
    OvercompleteSparseCoding,
    SparseCoding,
    SubspaceAttention,
    TokenStatistics,
)

CELLS, TOKENS, WIDTH, HEADS = 2, 7, 12, 3
PER_HEAD = WIDTH // HEADS


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tokens(*, width=WIDTH):
    return torch.randn(CELLS, TOKENS, width, dtype=torch.float64)


def by_head(mixer, y, attend):
    """``attend`` on ``U_k^T y`` of one cell and head at a time; what is returned, [B, N, D]."""
    bases = mixer.subspaces.weight.view(HEADS, PER_HEAD, WIDTH)
    return torch.stack([torch.cat([attend(cell @ bases[k].T) for k in range(HEADS)], 1) for cell in y]), bases


def subspace_self_attention(w):
    return torch.softmax(w @ w.T / math.sqrt(PER_HEAD), 1) @ w


def test_attention_within_subspaces():
    mixer, y = SubspaceAttention(WIDTH, HEADS).double(), tokens()
    heads, _ = by_head(mixer, y, subspace_self_attention)
    torch.testing.assert_close(mixer(y), heads @ mixer.out.weight.T + mixer.out.bias)


@pytest.mark.parametrize("kind", [SubspaceAttention, TokenStatistics])
def test_tied_heads_come_back_through_their_own_bases(kind):
    mixer, y = kind(WIDTH, HEADS, tied=True).double(), tokens()
    torch.nn.init.constant_(mixer.log_beta, math.log(0.7))
    torch.nn.init.normal_(mixer.subspaces.weight)
    alone = {}
    y_heads = mixer.project(y)
    for k in range(HEADS):
        only = torch.zeros_like(y_heads)
        only[:, :, k] = torch.randn(CELLS, TOKENS, PER_HEAD)
        basis = mixer.subspaces.weight[k * PER_HEAD : (k + 1) * PER_HEAD]  # U_k^T
        torch.testing.assert_close(mixer.recombine(only), 0.7 * only[:, :, k] @ basis)
        alone[k] = mixer.recombine(only)
    assert len(alone) == HEADS
    assert not hasattr(mixer, "out")


def test_tied_attention_as_a_whole():
    mixer, y = SubspaceAttention(WIDTH, HEADS, tied=True).double(), tokens()
    heads, bases = by_head(mixer, y, subspace_self_attention)
    expected = sum(heads[..., k * PER_HEAD : (k + 1) * PER_HEAD] @ bases[k] for k in range(HEADS))
    torch.testing.assert_close(mixer(y), expected)


def test_token_statistics():
    """ToST's vision form: memberships over heads, second moments, and the minus sign within."""
    mixer, y = TokenStatistics(WIDTH, HEADS).double(), tokens()
    torch.nn.init.uniform_(mixer.temperature, 0.5, 3)
    bases = mixer.subspaces.weight.view(HEADS, PER_HEAD, WIDTH)
    expected = []
    for cell in y:
        w = torch.stack([cell @ bases[k].T for k in range(HEADS)])  # H, N, P
        unit = w / w.square().sum(1, keepdim=True).sqrt()  # each channel over the tokens
        membership = torch.softmax(mixer.temperature[:, None] * unit.square().sum(2), 0)
        parts = []
        for k in range(HEADS):
            share = membership[k][:, None] / (membership[k].sum() + 1e-8)
            moment = (share * w[k].square()).sum(0)
            parts.append(-w[k] * membership[k][:, None] / (1 + moment))
        expected.append(torch.cat(parts, 1))
    torch.testing.assert_close(mixer(y), torch.stack(expected) @ mixer.out.weight.T + mixer.out.bias)


def test_token_statistics_tied_shrinks_what_lies_in_the_subspaces():
    """With orthonormal bases ``x + g U U^T(-...)`` can only shorten the coordinates: it is a shrinkage."""
    mixer, y = TokenStatistics(WIDTH, HEADS, tied=True).double(), tokens()
    before, after = mixer.project(y), mixer.project(y + 0.5 * mixer(y))
    assert (after.abs() <= before.abs() + 1e-12).all()
    assert after.norm() < 0.95 * before.norm()


def test_tied_bases_start_orthonormal_and_beta_stays_positive():
    mixer = SubspaceAttention(WIDTH, HEADS, tied=True)
    assert mixer.deviation() < 1e-10
    heads = torch.ones(1, 1, HEADS, PER_HEAD)
    plain = mixer.recombine(heads)
    for value in (-30.0, 5.0):
        torch.nn.init.constant_(mixer.log_beta, value)
        assert (mixer.recombine(heads) * plain >= 0).all()


def test_deviation_is_the_frobenius_distance():
    mixer = SubspaceAttention(WIDTH, HEADS).double()
    w = mixer.subspaces.weight
    expected = sum(((w[i] @ w[j]).item() - (i == j)) ** 2 for i in range(WIDTH) for j in range(WIDTH)) / WIDTH
    assert mixer.deviation().item() == pytest.approx(expected)
    assert expected > 0.1


def test_paying_for_deviation_makes_bases_orthonormal():
    mixer = SubspaceAttention(WIDTH, HEADS)
    optimiser = torch.optim.Adam(mixer.parameters(), lr=0.02)
    before = mixer.deviation().item()
    for _ in range(200):
        optimiser.zero_grad()
        mixer.deviation().backward()
        optimiser.step()
    assert mixer.deviation().item() < 1e-3 * before


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_one_step_of_ista(learned, residual):
    layer = SparseCoding(WIDTH, learned=learned, residual=residual, step_size=0.2, threshold=0.3).double()
    if learned:
        torch.nn.init.uniform_(layer.level, -2, 1)
    y, stream, gate = tokens(), tokens(), torch.randn(CELLS, WIDTH, dtype=torch.float64)
    d, price = layer.dictionary, torch.log1p(torch.exp(layer.level)).expand(WIDTH)
    seen = {}
    found = layer(y, stream, gate, seen.__setitem__)
    for cell in range(CELLS):
        for token in range(TOKENS):
            z = y[cell, token]
            missed = z - d @ z
            h = F.relu(z + 0.2 * d.T @ missed - 0.2 * price)
            expected = stream[cell, token] + gate[cell] * h if residual else h
            torch.testing.assert_close(found[cell, token], expected)
            torch.testing.assert_close(seen["sparse"][cell, token], h)
    torch.testing.assert_close(seen["sparse_input"], y)
    assert (seen["sparse"] == 0).any()


def test_two_steps_of_an_overcomplete_dictionary():
    layer = OvercompleteSparseCoding(WIDTH, learned=True, step_size=0.2, threshold=0.3).double()
    torch.nn.init.uniform_(layer.level, -2, 1)
    y, stream, gate = tokens(), tokens(), torch.randn(CELLS, WIDTH, dtype=torch.float64)
    d, price = layer.dictionary, torch.log1p(torch.exp(layer.level))
    seen = {}
    found = layer(y, stream, gate, seen.__setitem__)
    for cell in range(CELLS):
        for token in range(TOKENS):
            x, z = y[cell, token], torch.zeros(4 * WIDTH, dtype=torch.float64)
            for _ in range(2):
                z = F.relu(z - 0.2 * d.T @ (d @ z - x) - 0.2 * price)
            torch.testing.assert_close(seen["sparse"][cell, token], z)
            torch.testing.assert_close(
                found[cell, token], stream[cell, token] + gate[cell] * (layer.readout @ z)
            )


@pytest.mark.parametrize("kind", [SparseCoding, OvercompleteSparseCoding])
def test_a_step_that_can_not_overshoot_lowers_the_cost(kind):
    """``|y - D z|^2 / 2 + lambda |z|_1`` from a feasible start, where ``eta sigma_max(D)^2 <= 1``."""
    layer = kind(WIDTH, learned=True).double()
    y = tokens().abs()
    lipschitz = torch.linalg.matrix_norm(layer.dictionary, 2).item() ** 2
    layer.step_size = 0.99 / lipschitz
    code = layer.code(y)
    start = y if code.shape == y.shape else torch.zeros_like(code)

    def cost(z):
        return 0.5 * (y - z @ layer.dictionary.T).square().sum(-1) + z.abs() @ layer.threshold()

    assert (cost(code) < cost(start)).all()


@pytest.mark.parametrize("kind", [SparseCoding, OvercompleteSparseCoding])
def test_the_threshold_starts_as_published_and_learns_where_it_is_to(kind):
    y, stream, gate = tokens(), tokens(), torch.ones(CELLS, WIDTH, dtype=torch.float64)
    fixed, learned = kind(WIDTH).double(), kind(WIDTH, learned=True).double()
    for layer in (fixed, learned):
        torch.testing.assert_close(layer.threshold(), torch.full_like(layer.threshold(), 0.1))
        layer(y, stream, gate, None).sum().backward()
    assert fixed.level.grad is None
    assert (learned.level.grad != 0).all()


def test_a_higher_threshold_leaves_more_zeros():
    shares = []
    for threshold in (0.1, 2.0, 8.0):
        torch.manual_seed(0)
        shares.append((SparseCoding(WIDTH, threshold=threshold).double().code(tokens()) == 0).double().mean())
    assert shares[0] < shares[1] < shares[2]

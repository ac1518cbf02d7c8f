// Which blocks of keys a row may skip, with a proof. For a row q and a block of n keys with mean c, radius r and mean
// squared distance s from c, D = ‖q − c‖, the weights e^{−βE_j}, E_j = ‖q − k_j‖², add up to something between
//
//   U = n e^{−β(D − r)₊²}    since E_j ≥ (D − r)₊² by the triangle inequality, and
//   L = n e^{−β(D² + s)}     since mean E_j = D² + s, and the exponential is convex. (The other triangle inequality,
//                            E_j ≤ (D + r)², gives n e^{−β(D + r)²}, which is smaller yet: s ≤ r².)
//
// Say the blocks of a set S are skipped and the softmax is taken over the rest, K. With W_S ≤ ΣU_S =: s⁺ the true
// weight skipped and W_K ≥ Z_K := Z_open + ΣL_K the one kept, the skipped share of the softmax is W_S/(W_K + W_S) ≤ Δ
// := s⁺/(Z_K + s⁺). The dense output is (1 − δ)y + δy' with y the sparse one, y' an average of the skipped values and δ
// ≤ Δ, so ‖y − y_dense‖ = δ‖y − y'‖ ≤ 2Δ·max‖v‖: blocks may go, in ascending U, while 2Δ ≤ ε.
//
// Because L ≤ U, Z_K + s⁺ ≥ Z := Z_open + ΣL, and 2s⁺ ≤ εZ suffices. The largest such set {U ≤ τ} is found by bisection
// of log τ: no sorting, all rows of a register at once.
//
// Rounding: a distance computed in T is off by γ(‖q‖² + ‖c‖²) at most; every bound is moved by so much to its safe
// side.
#pragma once

#include "rbar/sheaf/key_blocks.hpp"
#include "rbar/simd/math.hpp"
#include "rbar/simd/scratch.hpp"
#include "rbar/simd/tile_product.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <numeric>

namespace rbar {

// One register of rows. Lanes from `count` on hold anything finite.
template <class T>
struct BoundRows {
  static constexpr Index lanes = simd::lanes<T>;
  Index count = 0;
  const T* query = nullptr;          // [dim][lanes], relative to the blocks' origin
  alignas(64) T square_norm[lanes];  // ‖q‖², of these
  alignas(64) T beta[lanes];
  alignas(64) T log2_open[lanes];  // log2 of a lower bound of Z_open; −∞ without an open chunk
  std::uint64_t* kept[lanes];      // the blocks to be seen: bit b of word b / 64, all 0 so far
};

// What became of a row.
struct RowOutcome {
  float share_bound = 0;     // Δ: what the skipped blocks could hold of the softmax at most
  std::int32_t visible = 0;  // blocks there were
  std::int32_t skipped = 0;
  std::int32_t nearest = -1;  // the block with the largest U
};

namespace detail {

struct BoundScratch {};

// γ of the note on rounding.
template <class T>
constexpr T distance_error(Index dim, Index block = 0) {
  return static_cast<T>(dim + block + 16) * std::numeric_limits<T>::epsilon();
}

// keep_incoherent: the ⌈share·count⌉ blocks with the largest lower bound of the residual, the earlier one of equals.
template <class T>
void choose_incoherent(Index lane, Index count, double share, const T* residual, std::uint64_t* kept, Index* order) {
  const auto keep = static_cast<Index>(std::ceil(share * static_cast<double>(count)));
  std::iota(order, order + count, Index{0});
  const auto further = [&](Index a, Index b) {
    const T x = residual[a * simd::lanes<T> + lane], y = residual[b * simd::lanes<T> + lane];
    return x > y || (x == y && a < b);
  };
  if (keep < count) std::nth_element(order, order + keep, order + count, further);
  for (Index i = 0; i < keep; ++i) kept[order[i] / 64] |= std::uint64_t{1} << order[i] % 64;
}

// Sets the bits of the blocks number[i], ascending, whose U exceeds the threshold of the lane or is not a number.
template <class T>
void note_kept(const T* upper, const simd::Batch<T>& threshold, const Index* number, Index count,
               const BoundRows<T>& rows) {
  constexpr Index L = simd::lanes<T>;
  alignas(64) T cut[L];
  simd::store(cut, threshold);
  for (Index i = 0; i < count;) {
    const Index first = number[i] / 32 * 32;
    alignas(64) std::uint32_t bits[L] = {};
    for (; i < count && number[i] < first + 32; ++i) {
      const T* u = upper + i * L;
      const auto shift = static_cast<std::uint32_t>(number[i] - first);
      for (Index lane = 0; lane < L; ++lane) bits[lane] |= static_cast<std::uint32_t>(!(u[lane] <= cut[lane])) << shift;
    }
    for (Index lane = 0; lane < rows.count; ++lane)
      rows.kept[lane][first / 64] |= static_cast<std::uint64_t>(bits[lane]) << first % 64;
  }
}

template <class T>
auto lanes_that_skip(Index b, const BoundRows<T>& rows) {
  alignas(64) T seen[simd::lanes<T>] = {};
  for (Index lane = 0; lane < rows.count; ++lane) seen[lane] = static_cast<T>(rows.kept[lane][b / 64] >> b % 64 & 1);
  return simd::load(seen) == simd::zero<T>();
}

}  // namespace detail

// Decides for every row of a register, by itself. `outcomes[lane]` for lane < rows.count.
template <class T>
void choose_blocks(const BlockBalls<T>& blocks, const BoundRows<T>& rows, const SparsityConfig& config,
                   RowOutcome* outcomes) {
  constexpr Index L = simd::lanes<T>;
  using B = simd::Batch<T>;
  const bool coherent = config.policy == SparsityPolicy::keep_coherent;
  const Index n = blocks.count;
  T* upper = simd::thread_scratch<T, detail::BoundScratch>(3 * n * L);  // log2 U, then U relative to 2^reference
  T* lower = upper + n * L;                                             // log2 L, then L
  T* residual = lower + n * L;                                          // (D − r)₊
  simd::tile_product<false, simd::Lies::by_rows>(n, L, blocks.dim, blocks.center, blocks.dim, rows.query, L, upper, L);

  const T gamma = detail::distance_error<T>(blocks.dim, blocks.capacity);
  const B zero = simd::zero<T>(), two = simd::broadcast(T(2)), slack = simd::broadcast(gamma);
  const B query_norm = simd::load(rows.square_norm), log2_open = simd::load(rows.log2_open);
  const B beta = simd::load(rows.beta) * simd::broadcast(std::numbers::log2e_v<T>);
  const B beta_lower = beta * simd::broadcast(1 - gamma), beta_upper = beta * simd::broadcast(1 + gamma);
  B reference = log2_open, nearest_value = simd::broadcast(-std::numeric_limits<T>::infinity()), nearest = zero;
  for (Index b = 0; b < n; ++b) {
    const B norms = query_norm + simd::broadcast(blocks.center_square_norm[b]), error = slack * norms;
    const B square = norms - two * simd::load(upper + b * L);
    const B reach = simd::broadcast(blocks.radius[b] * (1 + gamma)), log2_keys = simd::broadcast(blocks.log2_keys[b]);
    const B gap = simd::max(xsimd::sqrt(simd::max(square - error, zero)) - reach, zero);
    const B log2_upper = log2_keys - beta_lower * (gap * gap);
    const B log2_lower = log2_keys - beta_upper * (simd::max(square, zero) + error + simd::broadcast(blocks.spread[b]));
    const auto closer = log2_upper > nearest_value;
    nearest_value = xsimd::select(closer, log2_upper, nearest_value);
    nearest = xsimd::select(closer, simd::broadcast(static_cast<T>(b)), nearest);
    reference = simd::max(reference, log2_lower);
    simd::store(upper + b * L, log2_upper);
    simd::store(lower + b * L, log2_lower);
    if (!coherent) simd::store(residual + b * L, gap);
  }

  // Most blocks are out of the question for all rows: together less than n·2^negligible of Z. The others move up.
  Index* number = simd::thread_scratch<Index, detail::BoundScratch>(2 * n);  // of the block, for each that is left
  Index left = 0;
  const T negligible = coherent && config.epsilon > 0 ? static_cast<T>(std::log2(config.epsilon)) - 30
                                                      : -std::numeric_limits<T>::infinity();
  // A block that only some rows can do without keeps its place, with the weight 0 for these: a row's decision must not
  // depend on its company.
  const B least = simd::broadcast(std::numeric_limits<T>::min());
  B total = simd::exp2(log2_open - reference);  // Z ≥ 1 from here on
  auto drops = zero > zero;                     // rows that drop a block this way
  for (Index b = 0; b < n; ++b) {
    const B log2_upper = simd::load(upper + b * L) - reference;
    const auto out = log2_upper < simd::broadcast(negligible);
    drops = drops || out;
    if (xsimd::all(out)) continue;
    const B low = xsimd::select(out, zero, simd::exp2(simd::load(lower + b * L) - reference));
    const B up = simd::exp2(simd::min(log2_upper, simd::broadcast(T(60))));  // beyond, all are kept
    total = total + low;
    simd::store(upper + left * L, xsimd::select(out, zero, simd::max(least, up)));
    simd::store(lower + left * L, low);
    number[left++] = b;
  }
  // A float holds nothing below 2^−126.
  const B rest =
      simd::broadcast(static_cast<T>(n) * static_cast<T>(std::exp2(std::max(static_cast<double>(negligible), -100.0))));

  const B threshold_of_none = zero;
  B threshold = threshold_of_none;  // up to which U a row skips
  if (coherent) {
    // Any U > εZ/2 would go too far; most often all that are smaller may go. All U ≤ εZ/4n always may.
    // The sums of n terms round.
    const double slack_of_sums = 1e-5 + static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon());
    const B budget = simd::broadcast(static_cast<T>(0.5 * config.epsilon * std::max(0.0, 1 - slack_of_sums))) * total;
    const auto fits = [&](const B& largest) {
      B sum = rest;
      for (Index i = 0; i < left; ++i) {
        const B u = simd::load(upper + i * L);
        sum = sum + xsimd::select(u <= largest, u, zero);
      }
      return sum <= budget;
    };
    threshold = budget;
    if (!xsimd::all(fits(budget))) {
      B low = budget * simd::broadcast(T(1) / static_cast<T>(4 * n)), high = budget;
      threshold = xsimd::select(fits(high), high, xsimd::select(fits(low), low, threshold_of_none));
      for (int round = 0; round < 8; ++round) {
        const B middle = xsimd::sqrt(low * high);
        const auto good = fits(middle);
        threshold = simd::max(threshold, xsimd::select(good, middle, threshold_of_none));
        low = xsimd::select(good, middle, low);
        high = xsimd::select(good, high, middle);
      }
    }
  }
  if (coherent) {
    detail::note_kept(upper, threshold, number, left, rows);
  } else {
    for (Index lane = 0; lane < rows.count; ++lane)
      detail::choose_incoherent(lane, n, config.keep_share, residual, rows.kept[lane], number + n);
  }

  // Δ of what was chosen.
  B skipped = xsimd::select(drops, rest, zero), kept = simd::exp2(log2_open - reference);
  for (Index i = 0; i < left; ++i) {
    const B u = simd::load(upper + i * L), low = simd::load(lower + i * L);
    auto skips = u <= threshold;
    if (!coherent) skips = detail::lanes_that_skip(number[i], rows);
    skipped = skipped + xsimd::select(skips, u, zero);
    kept = kept + xsimd::select(skips, zero, low);
  }
  alignas(64) T share[L], nearest_block[L];
  simd::store(share, xsimd::select(skipped > zero, skipped / (kept + skipped), zero));
  simd::store(nearest_block, nearest);
  for (Index lane = 0; lane < rows.count; ++lane) {
    Index seen = 0;
    for (Index w = 0; 64 * w < n; ++w) seen += std::popcount(rows.kept[lane][w]);
    outcomes[lane] = {static_cast<float>(share[lane]), static_cast<std::int32_t>(n),
                      static_cast<std::int32_t>(n - seen), static_cast<std::int32_t>(nearest_block[lane])};
  }
}

}  // namespace rbar

// How much a token disagrees with its causal context, in O(tokens · energy_dim) instead of O(tokens²):
//   E_i = mean_{j≤i} ‖q_i − k_j‖² = ‖q_i − k̄_i‖² + V_i,   q = ρ_q(h), k = ρ_k(h)
//   k̄_i = mean_{j≤i} k_j,   V_i = mean_{j≤i} ‖k_j − k̄_i‖²   (the trace of the keys' covariance)
// The sum of E over a sequence is the Dirichlet energy of the causal token sheaf, every row weighted by 1/(i+1).
//
// k̄ and V come from Welford's recurrence (Technometrics 4, 1962), n = i + 1:
//   δ = k_i − k̄,   k̄ ← k̄ + δ/n,   M ← M + δ·(k_i − k̄),   V = M/n
// in double, so that a common offset of the states does not cancel: with raw sums of squares an offset of 10 leaves
// nothing of an E of .006 in fp32.
#pragma once

#include "rbar/sheaf/restriction_map.hpp"
#include "rbar/simd/batch.hpp"

#include <algorithm>
#include <cmath>

namespace rbar {

struct TokenEnergyConfig {
  Index d_model = 0;
  Index energy_dim = 32;  // width of q and k; identity and diagonal maps keep d_model instead
  RestrictionMapKind map = RestrictionMapKind::dense;
  Index map_rank = 0;  // of low_rank
  bool bias = true;
  // ρ_q and ρ_k start with the same numbers: the energy of tokens that are alike is then 0 from the beginning. They are
  // two sets of parameters nevertheless, and training takes them apart.
  bool start_tied = true;

  Index width() const {
    const bool square = map == RestrictionMapKind::identity || map == RestrictionMapKind::diagonal;
    return square ? d_model : energy_dim;
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("energy_dim", energy_dim);
    visit("map", map);
    visit("map_rank", map_rank);
    visit("bias", bias);
    visit("start_tied", start_tied);
  }

  void validate() const {
    constexpr const char* where = "TokenEnergyConfig";
    require(d_model >= 1, where, "d_model", "at least 1", d_model);
    require(energy_dim >= 1, where, "energy_dim", "at least 1", energy_dim);
    // A projection does not look at the features it drops, and a NaN there would route silently.
    const bool sees_all = map != RestrictionMapKind::projection && map != RestrictionMapKind::csr;
    require(sees_all, where, "map", "identity, diagonal, dense or low_rank", name_of(map));
    require(map != RestrictionMapKind::low_rank || (map_rank >= 1 && map_rank <= std::min(d_model, energy_dim)), where,
            "map_rank", "1 <= map_rank <= min(d_model, energy_dim)", map_rank);
  }
};

// k̄ and M of the keys seen so far, for each sequence of a batch.
struct ContextMoments {
  Index seen = 0;                      // n, the same for all sequences
  Tensor<double, 2> mean;              // k̄ [B, dim]
  Tensor<double, 1> square_deviation;  // M [B]

  void start(Index batch, Index dim) {
    seen = 0;
    ensure_shape(mean, {batch, dim});
    ensure_shape(square_deviation, {batch});
    mean.setZero();
    square_deviation.setZero();
  }
};

namespace detail {

// One token's turn of the recurrence: takes its key in, returns ‖q − k̄‖² for the k̄ that includes it.
template <class T>
RBAR_INLINE double absorb_key(const T* query, const T* key, Index dim, double weight, double* mean,
                              double& square_deviation) {
  using Double = simd::Batch<double>;
  constexpr Index lanes = simd::lanes<double>;
  const Double share = simd::broadcast(weight);
  Double distance = simd::zero<double>(), deviation = distance;
  const auto absorb = [&](const Double& q, const Double& k, const Double& before) RBAR_INLINE_LAMBDA {
    const Double delta = k - before, moved = simd::multiply_add(delta, share, before), residual = q - moved;
    deviation = simd::multiply_add(delta, k - moved, deviation);
    distance = simd::multiply_add(residual, residual, distance);
    return moved;
  };
  Index d = 0;
  for (; d + lanes <= dim; d += lanes)
    simd::store(mean + d, absorb(simd::load_as_double(query + d), simd::load_as_double(key + d), simd::load(mean + d)));
  if (const Index left = dim - d; left > 0)  // lanes that are not there have q = k = k̄ = 0 and add nothing
    simd::store_partial(mean + d,
                        absorb(simd::load_partial_as_double(query + d, left),
                               simd::load_partial_as_double(key + d, left), simd::load_partial(mean + d, left)),
                        left);
  square_deviation += simd::reduce_add(deviation);
  return simd::reduce_add(distance);
}

// ‖k̄‖²
inline double square_norm(const double* mean, Index dim) {
  simd::Batch<double> sum = simd::zero<double>();
  Index d = 0;
  for (; d + simd::lanes<double> <= dim; d += simd::lanes<double>) {
    const simd::Batch<double> part = simd::load(mean + d);
    sum = simd::multiply_add(part, part, sum);
  }
  if (d < dim) {
    const simd::Batch<double> part = simd::load_partial(mean + d, dim - d);
    sum = simd::multiply_add(part, part, sum);
  }
  return simd::reduce_add(sum);
}

}  // namespace detail

// Energies of the next `tokens` tokens of every sequence: query, key [B, tokens, dim] -> energy, spread V [B, tokens]
// and mean k̄ [B, tokens, dim] (the last two for backward; `mean` may be empty). Moves the moments on.
template <class T>
void context_energies(ConstTensorView<T, 3> query, ConstTensorView<T, 3> key, ContextMoments& moments,
                      Tensor<T, 3>& mean, Tensor<T, 2>& spread, Tensor<T, 2>& energy) {
  const Index batch = key.dimension(0), tokens = key.dimension(1), dim = key.dimension(2);
  require_shape("context_energies", "query", query, {batch, tokens, dim});
  require_shape("context_energies", "moments.mean", moments.mean, {batch, dim});
  ensure_shape(energy, {batch, tokens});
  ensure_shape(spread, {batch, tokens});
  parallel_for(batch, 1, [&](Index begin, Index end) {
    for (Index b = begin; b < end; ++b) {
      double* const running = moments.mean.data() + b * dim;
      double square_deviation = moments.square_deviation(b);
      for (Index i = 0; i < tokens; ++i) {
        const Index row = b * tokens + i;
        const double weight = 1.0 / static_cast<double>(moments.seen + i + 1);
        const double distance = detail::absorb_key(query.data() + row * dim, key.data() + row * dim, dim, weight,
                                                   running, square_deviation);
        spread.data()[row] = static_cast<T>(square_deviation * weight);
        energy.data()[row] = static_cast<T>(distance + square_deviation * weight);
        if (mean.size() > 0)
          for (Index d = 0; d < dim; ++d) mean.data()[row * dim + d] = static_cast<T>(running[d]);
      }
      moments.square_deviation(b) = square_deviation;
    }
  });
  moments.seen += tokens;
}

// The gradient for sequences that begin with their first token: denergy g [B, T] -> dquery, dkey [B, T, dim].
//   ∂E_i/∂q_i = 2 (q_i − k̄_i),   ∂E_i/∂k_j = (2/(i+1)) (k_j − q_i) for j ≤ i, hence
//   dk_j = 2 (S_j k_j − R_j),   S_j = Σ_{i≥j} g_i/(i+1),   R_j = Σ_{i≥j} g_i q_i/(i+1)   (both in double)
template <class T>
void context_energies_backward(ConstTensorView<T, 2> denergy, ConstTensorView<T, 3> query, ConstTensorView<T, 3> key,
                               const Tensor<T, 3>& mean, Tensor<T, 3>& dquery, Tensor<T, 3>& dkey) {
  const Index batch = key.dimension(0), tokens = key.dimension(1), dim = key.dimension(2);
  require_shape("context_energies_backward", "denergy", denergy, {batch, tokens});
  require_shape("context_energies_backward", "mean", mean, {batch, tokens, dim});
  ensure_shape(dquery, {batch, tokens, dim});
  ensure_shape(dkey, {batch, tokens, dim});
  constexpr Index features = 16;  // of one chunk; its running sums stay in registers
  const Index blocks = (dim + features - 1) / features;
  parallel_for(batch * blocks, 1, [&](Index begin, Index end) {
    for (Index chunk = begin; chunk < end; ++chunk) {
      const Index b = chunk / blocks, first = chunk % blocks * features, count = std::min(features, dim - first);
      double weight_sum = 0, query_sum[features] = {};  // S, R
      for (Index i = tokens - 1; i >= 0; --i) {
        const double g = static_cast<double>(denergy(b, i)), weight = g / static_cast<double>(i + 1);
        weight_sum += weight;
        const Index at = (b * tokens + i) * dim + first;
        for (Index d = 0; d < count; ++d) {
          const double q = static_cast<double>(query.data()[at + d]);
          query_sum[d] += weight * q;
          dquery.data()[at + d] = static_cast<T>(2 * g * (q - static_cast<double>(mean.data()[at + d])));
          dkey.data()[at + d] =
              static_cast<T>(2 * (weight_sum * static_cast<double>(key.data()[at + d]) - query_sum[d]));
        }
      }
    }
  });
}

// Energies of hidden states [B, T, d_model] with maps of their own. Energies are raw: energy_scale.hpp gives them a
// unit. Errors: another d_model, no tokens, a NaN or an infinity in the states.
template <class T>
struct TokenEnergy {
  using Scalar = T;

  TokenEnergyConfig config;
  RestrictionMap<T> rho_query, rho_key;  // ρ_q, ρ_k: d_model -> width

  struct Cache {
    Tensor<T, 3> query, key;            // [B, T, width]
    Tensor<T, 3> mean;                  // k̄_i [B, T, width]
    Tensor<T, 2> spread;                // V_i [B, T]
    ContextMoments moments, moved;      // after the last token; scratch of step
    mutable Tensor<T, 3> dquery, dkey;  // scratch of backward
    mutable Tensor<T, 2> moved_query;   // scratch of remeasure
  };
  // Streaming: the keys of a sequence so far, in O(width). A copy is a branch of the stream; a default-constructed
  // state is its beginning.
  struct State {
    Cache cache;  // of the last call, and the moments of all

    void reset() { cache.moments.seen = 0; }
  };

  TokenEnergy() = default;
  TokenEnergy(const TokenEnergyConfig& config_, Rng& rng) : config(config_) {
    config.validate();
    const auto make = [&] {
      return RestrictionMap<T>::of_kind(config.map, config.d_model, config.width(), config.map_rank, config.bias, rng);
    };
    rho_query = make();
    rho_key = config.start_tied ? rho_query : make();
  }

  // hidden [B, T, d_model] -> energy [B, T], every sequence from its first token.
  void forward(ConstTensorView<T, 3> hidden, Tensor<T, 2>& energy, Cache& cache) const {
    check("TokenEnergy::forward", hidden);
    cache.moments.start(hidden.dimension(0), config.width());
    measure("TokenEnergy::forward", hidden, energy, cache);
  }

  // denergy [B, T] -> dhidden [B, T, d_model] (ACCUMULATES).
  void backward(ConstTensorView<T, 2> denergy, ConstTensorView<T, 3> hidden, const Cache& cache, Tensor<T, 3>& dhidden,
                TokenEnergy& grad) const {
    check("TokenEnergy::backward", hidden);
    require(cache.moments.seen == hidden.dimension(1), "TokenEnergy::backward", "cache", "that of forward",
            cache.moments.seen);
    require_shape("TokenEnergy::backward", "dhidden", shape_of(dhidden), shape_of(hidden));
    context_energies_backward<T>(denergy, view(cache.query), view(cache.key), cache.mean, cache.dquery, cache.dkey);
    rho_query.backward(rows(std::as_const(cache.dquery)), rows(hidden), rows(dhidden), grad.rho_query,
                       /*accumulate_dx=*/true);
    rho_key.backward(rows(std::as_const(cache.dkey)), rows(hidden), rows(dhidden), grad.rho_key,
                     /*accumulate_dx=*/true);
  }

  // The next tokens [B, new, d_model] of every sequence: the energies `forward` has for them, to the last bit.
  void step(ConstTensorView<T, 3> hidden, Tensor<T, 2>& energy, State& state) const {
    check("TokenEnergy::step", hidden);
    if (state.cache.moments.seen == 0) state.cache.moments.start(hidden.dimension(0), config.width());
    require_shape("TokenEnergy::step", "state (batch of the first step)", state.cache.moments.mean,
                  {hidden.dimension(0), config.width()});
    measure("TokenEnergy::step", hidden, energy, state.cache);
  }

  // What the energies of a few tokens would be if these alone had other states, everything they are measured against
  // being as it was: hidden_rows [n, d_model] are the new states of rows [n] (numbers into the [B, T] of the cache's
  // last forward or step) -> energy [n].
  void remeasure(ConstMatrixView<T> hidden_rows, const Index* token_rows, const Cache& cache, T* energy) const {
    constexpr const char* where = "TokenEnergy::remeasure";
    const Index count = hidden_rows.rows(), dim = config.width();
    require_shape(where, "hidden_rows", hidden_rows, {-1, config.d_model});
    if (cache.moved_query.dimension(0) < count || cache.moved_query.dimension(1) != dim)
      ensure_shape(cache.moved_query, {count, dim});
    rho_query.forward(hidden_rows, top_rows(cache.moved_query, count));
    for (Index n = 0; n < count; ++n) {
      const Index row = token_rows[n];
      require(row >= 0 && row < cache.spread.size(), where, "token_rows", "rows of the cache", row);
      const T* query = cache.moved_query.data() + n * dim;
      const T* mean = cache.mean.data() + row * dim;
      double distance = 0;
      for (Index d = 0; d < dim; ++d) {
        const double residual = static_cast<double>(query[d]) - static_cast<double>(mean[d]);
        distance += residual * residual;
      }
      energy[n] = static_cast<T>(distance) + cache.spread.data()[row];
    }
    require_finite(where, "energy (of hidden_rows)", std::span<const T>(energy, static_cast<std::size_t>(count)));
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "rho_query", rho_query);
    visit_layer(visit, "rho_key", rho_key);
  }

 private:
  void check(std::string_view operation, ConstTensorView<T, 3> hidden) const {
    require_shape(operation, "hidden", hidden, {-1, -1, config.d_model});
    require(hidden.size() > 0, operation, "hidden", "at least one token", hidden.size());
  }

  void measure(std::string_view operation, ConstTensorView<T, 3> hidden, Tensor<T, 2>& energy, Cache& cache) const {
    const Shape<3> shape{hidden.dimension(0), hidden.dimension(1), config.width()};
    for (Tensor<T, 3>* tensor : {&cache.query, &cache.key, &cache.mean}) ensure_shape(*tensor, shape);
    rho_query.forward(rows(hidden), rows(cache.query));
    rho_key.forward(rows(hidden), rows(cache.key));
    cache.moved = cache.moments;
    context_energies<T>(view(std::as_const(cache.query)), view(std::as_const(cache.key)), cache.moved, cache.mean,
                        cache.spread, energy);
    // Every feature of a state enters its energy, so looking at the energies is enough.
    require_finite(operation, "energy (of hidden)", std::span<const T>(elements(energy)));
    cache.moments = cache.moved;  // only now: a refused step leaves the stream as it was
  }
};

}  // namespace rbar

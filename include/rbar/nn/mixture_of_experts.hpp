// A mixture of experts: every token is sent to the k feed-forward blocks that a linear gate prefers.
//   p = softmax(W_g x),   y = Σ_{e ∈ top-k} w_e · FFN_e(x)
//   w = p renormalised over the chosen (= softmax of the chosen logits); k = 1 keeps p itself, because renormalised
//       it is the constant 1 and the task would teach the gate nothing.
//   auxiliary loss = balance_weight · E · Σ_e f_e P_e,   f_e = share of the choices that fell on e, P_e = mean of p_e;
//       balance_weight · 1 where all experts bear alike, E times that where one bears everything.
// Sources: Shazeer et al., arXiv:1701.06538; Lepikhin et al. (GShard), arXiv:2006.16668; Fedus et al. (Switch),
// arXiv:2101.03961. Unlike theirs it drops no token: experts take as many as come.
#pragma once

#include "rbar/nn/feed_forward.hpp"
#include "rbar/simd/softmax.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace rbar {

struct MixtureOfExpertsConfig {
  Index d_model = 0;
  Index d_ff = 0;  // of one expert
  Index n_experts = 4;
  Index top_k = 2;
  bool bias = true;  // of the experts; the gate has none
  double balance_weight = 0.01;
  Activation activation = Activation::gelu;

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("d_ff", d_ff);
    visit("n_experts", n_experts);
    visit("top_k", top_k);
    visit("bias", bias);
    visit("balance_weight", balance_weight);
    visit("activation", activation);
  }
  void validate() const {
    constexpr const char* where = "MixtureOfExpertsConfig";
    require(d_model >= 1, where, "d_model", "at least 1", d_model);
    require(d_ff >= 1, where, "d_ff", "at least 1", d_ff);
    require(n_experts >= 1, where, "n_experts", "at least 1", n_experts);
    require(top_k >= 1 && top_k <= n_experts, where, "top_k", "1 to n_experts", top_k);
    require(balance_weight >= 0 && balance_weight <= 1e6, where, "balance_weight", "0 to 1e6", balance_weight);
  }
};

// [N, D] -> [N, D], any N including 0. A row's output depends on that row alone, to the last bit; of equal logits
// the expert with the lower number is preferred. Errors: shapes, gate logits that are not finite.
template <class T>
struct MixtureOfExperts {
  using Scalar = T;

  // Choice number n·k + j is token n's j-th. Packed rows lie expert by expert, tokens ascending. Buffers keep room
  // for the most tokens seen; those of the last call are in use.
  struct Cache {
    double auxiliary_loss = 0;
    Index tokens = 0;                       // N
    std::vector<Index> offsets;             // [E + 1]: expert e has the packed rows offsets[e] … offsets[e + 1] − 1
    std::vector<double> mean_probability;   // [E] P_e
    std::vector<Index> chosen, packed_row;  // [N·k] expert of a choice, and where its row is packed
    Tensor<T, 2> probability;               // [N, E]
    Tensor<T, 2> weight;                    // [N, k]
    Tensor<T, 2> packed_x, packed_y;        // [N·k, D]
    Tensor<T, 2> hidden;                    // [N·k, F] before f
    mutable Tensor<T, 2> activated;         // [N·k, F] f(hidden): scratch, as are the next
    mutable Tensor<T, 2> dlogits;           // [N, E]
    mutable Tensor<T, 2> dpacked, dhidden;  // [N·k, D], [N·k, F]
    mutable std::vector<T> dprobability;    // [E]

    void swap_scratch(const Cache& other) const {
      std::swap(activated, other.activated);
      std::swap(dpacked, other.dpacked);
      std::swap(dhidden, other.dhidden);
    }

    Index load(Index expert) const {  // tokens that the expert was given
      return offsets[static_cast<std::size_t>(expert + 1)] - offsets[static_cast<std::size_t>(expert)];
    }
  };

  MixtureOfExpertsConfig config;
  Linear<T> gate;                       // [E, D], no bias
  std::vector<FeedForward<T>> experts;  // [E]

  MixtureOfExperts() = default;
  MixtureOfExperts(const MixtureOfExpertsConfig& config_, Rng& rng) : config(config_) {
    config.validate();
    gate = Linear<T>(config.d_model, config.n_experts, /*has_bias=*/false, rng);
    for (Index e = 0; e < config.n_experts; ++e)
      experts.emplace_back(config.d_model, config.d_ff, config.bias, rng, config.activation);
  }

  void forward(ConstMatrixView<T> x, MatrixView<T> y, Cache& cache) const {
    require_shape("MixtureOfExperts::forward", "y", y, {x.rows(), config.d_model});
    fill(x, cache);
    combine(cache, cache.packed_y, cache.weight.data(), y, /*accumulate=*/false);
  }

  // The cache that forward leaves, without its output.
  void fill(ConstMatrixView<T> x, Cache& cache) const {
    require_shape("MixtureOfExperts::forward", "x", x, {-1, config.d_model});
    choose(x, cache);
    pack(x, cache);
    const Index choices = x.rows() * config.top_k;
    ensure_rows(cache.hidden, choices, config.d_ff);
    ensure_rows(cache.packed_y, choices, config.d_model);
    for_each_expert(cache, [&](Index e, Index first, Index count) {
      expert(e).up.forward(packed(std::as_const(cache.packed_x), first, count), packed(cache.hidden, first, count));
    });
    activate(cache, choices);
    for_each_expert(cache, [&](Index e, Index first, Index count) {
      expert(e).down.forward(packed(std::as_const(cache.activated), first, count),
                             packed(cache.packed_y, first, count));
    });
  }

  // Includes the gradient of the auxiliary loss. An empty dx is skipped.
  void backward(ConstMatrixView<T> dy, ConstMatrixView<T> x, const Cache& cache, MatrixView<T> dx,
                MixtureOfExperts& grad, bool accumulate_dx = false) const {
    require_shape("MixtureOfExperts::backward", "x", x, {cache.tokens, config.d_model});
    require_shape("MixtureOfExperts::backward", "dy", dy, {cache.tokens, config.d_model});
    if (dx.size() > 0) require_shape("MixtureOfExperts::backward", "dx", dx, {cache.tokens, config.d_model});
    const Index choices = cache.tokens * config.top_k;
    ensure_rows(cache.dpacked, choices, config.d_model);
    ensure_rows(cache.dhidden, choices, config.d_ff);
    gate_backward(dy, cache);
    gate.backward(top_rows(std::as_const(cache.dlogits), cache.tokens), x, dx, grad.gate, accumulate_dx);

    activate(cache, choices);
    for_each_expert(cache, [&](Index e, Index first, Index count) {
      expert(e).down.backward(packed(std::as_const(cache.dpacked), first, count),
                              packed(std::as_const(cache.activated), first, count), packed(cache.dhidden, first, count),
                              grad.expert(e).down);
    });
    const MatrixView<T> dhidden = top_rows(cache.dhidden, choices);
    activation_backward<T>(config.activation, as_const(dhidden), top_rows(cache.hidden, choices), dhidden);
    for_each_expert(cache, [&](Index e, Index first, Index count) {
      expert(e).up.backward(packed(std::as_const(cache.dhidden), first, count), packed(cache.packed_x, first, count),
                            dx.size() > 0 ? packed(cache.dpacked, first, count) : MatrixView<T>(nullptr, 0, 0),
                            grad.expert(e).up);
    });
    if (dx.size() > 0) combine(cache, cache.dpacked, nullptr, dx, /*accumulate=*/true);
  }

  void parameters(auto&& visit) {
    visit_layer(visit, "gate", gate);
    for (std::size_t e = 0; e < experts.size(); ++e) visit_layer(visit, "experts." + std::to_string(e), experts[e]);
  }
  // The gate, small, decides: it stays.
  void linears(auto&& visit) {
    for (auto& each : experts) each.linears(visit);
  }

 private:
  static constexpr Index row_chunk = 64;

  FeedForward<T>& expert(Index e) { return experts[static_cast<std::size_t>(e)]; }
  const FeedForward<T>& expert(Index e) const { return experts[static_cast<std::size_t>(e)]; }

  static MatrixView<T> packed(Tensor<T, 2>& buffer, Index first, Index count) {
    return MatrixView<T>(buffer.data() + first * buffer.dimension(1), count, buffer.dimension(1));
  }
  static ConstMatrixView<T> packed(const Tensor<T, 2>& buffer, Index first, Index count) {
    return ConstMatrixView<T>(buffer.data() + first * buffer.dimension(1), count, buffer.dimension(1));
  }

  void activate(const Cache& cache, Index choices) const {
    ensure_rows(cache.activated, choices, config.d_ff);
    activation_forward<T>(config.activation, top_rows(cache.hidden, choices), top_rows(cache.activated, choices));
  }

  // body(e, first packed row, rows) for the experts that were chosen at all.
  template <class Body>
  void for_each_expert(const Cache& cache, Body&& body) const {
    for (Index e = 0; e < config.n_experts; ++e)
      if (cache.load(e) > 0) body(e, cache.offsets[static_cast<std::size_t>(e)], cache.load(e));
  }

  // Probabilities, the k experts of every token with their weights, and the auxiliary loss.
  void choose(ConstMatrixView<T> x, Cache& cache) const {
    const Index count = x.rows(), n_experts = config.n_experts, top_k = config.top_k;
    cache.tokens = count;
    cache.chosen.resize(static_cast<std::size_t>(count * top_k));
    ensure_rows(cache.probability, count, n_experts);
    ensure_rows(cache.weight, count, top_k);
    const MatrixView<T> probability = top_rows(cache.probability, count);
    gate.forward(x, probability);  // the logits, for now
    require_finite("MixtureOfExperts::forward", "gate logits",
                   std::span<const T>(probability.data(), static_cast<std::size_t>(probability.size())));
    parallel_for(count, row_chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) {
        T* const row = cache.probability.data() + n * n_experts;
        Index* const chosen = cache.chosen.data() + n * top_k;
        T* const weight = cache.weight.data() + n * top_k;
        for (Index j = 0; j < top_k; ++j) {
          Index best = -1;
          for (Index e = 0; e < n_experts; ++e)
            if ((best < 0 || row[e] > row[best]) && std::find(chosen, chosen + j, e) == chosen + j) best = e;
          chosen[j] = best;
        }
        simd::softmax_row(row, n_experts, row);
        T total = top_k == 1 ? T(1) : T(0);
        for (Index j = 0; top_k > 1 && j < top_k; ++j) total += row[chosen[j]];
        for (Index j = 0; j < top_k; ++j) weight[j] = row[chosen[j]] / total;
      }
    });

    cache.offsets.assign(static_cast<std::size_t>(n_experts + 1), 0);
    for (const Index e : cache.chosen) ++cache.offsets[static_cast<std::size_t>(e + 1)];
    cache.mean_probability.assign(static_cast<std::size_t>(n_experts), 0);
    for (Index n = 0; n < count; ++n)
      for (Index e = 0; e < n_experts; ++e)
        cache.mean_probability[static_cast<std::size_t>(e)] += static_cast<double>(probability(n, e));
    double sum = 0;
    for (std::size_t e = 0; e < cache.mean_probability.size(); ++e) {
      cache.mean_probability[e] /= static_cast<double>(std::max<Index>(1, count));
      sum += static_cast<double>(cache.offsets[e + 1]) * cache.mean_probability[e];
      cache.offsets[e + 1] += cache.offsets[e];  // counts become offsets
    }
    cache.auxiliary_loss = config.balance_weight * static_cast<double>(n_experts) * sum /
                           static_cast<double>(std::max<Index>(1, count * top_k));
  }

  // Copies every token's row to each of its experts.
  void pack(ConstMatrixView<T> x, Cache& cache) const {
    const Index choices = cache.tokens * config.top_k, dim = config.d_model;
    cache.packed_row.resize(static_cast<std::size_t>(choices));
    ensure_rows(cache.packed_x, choices, dim);
    // offsets[e] runs up to where expert e + 1 starts, and is moved back by one expert afterwards.
    for (std::size_t i = 0; i < cache.chosen.size(); ++i)
      cache.packed_row[i] = cache.offsets[static_cast<std::size_t>(cache.chosen[i])]++;
    std::rotate(cache.offsets.rbegin(), cache.offsets.rbegin() + 1, cache.offsets.rend());
    cache.offsets[0] = 0;
    parallel_for(choices, row_chunk, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i)
        std::copy_n(x.data() + i / config.top_k * dim, dim,
                    cache.packed_x.data() + cache.packed_row[static_cast<std::size_t>(i)] * dim);
    });
  }

  // out[n] (+)= Σ_j weight[n, j] · rows[packed_row(n, j)], j in the order of choice; without weights a plain sum.
  void combine(const Cache& cache, const Tensor<T, 2>& from, const T* weight, MatrixView<T> out,
               bool accumulate) const {
    const Index dim = config.d_model, top_k = config.top_k;
    parallel_for(cache.tokens, row_chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) {
        const Index* const packed_row = cache.packed_row.data() + n * top_k;
        T* const to = out.data() + n * dim;
        for (Index d = 0; d < dim; d += simd::lanes<T>) {
          const Index count = std::min(simd::lanes<T>, dim - d);
          auto sum = accumulate ? detail::load_some(to + d, count) : simd::zero<T>();
          for (Index j = 0; j < top_k; ++j)
            sum = simd::multiply_add(simd::broadcast(weight ? weight[n * top_k + j] : T(1)),
                                     detail::load_some(from.data() + packed_row[j] * dim + d, count), sum);
          detail::store_some(to + d, sum, count);
        }
      }
    });
  }

  // dpacked = w·dy at every choice, and dlogits. With s_j = w_j (dw_j − Σ w dw), dw_j = dy·FFN_j(x):
  //   dlogits = s at the chosen + softmax's vjp of dp,  dp_e = balance_weight·E·f_e/N  (k = 1: + dw at the chosen).
  void gate_backward(ConstMatrixView<T> dy, const Cache& cache) const {
    const Index dim = config.d_model, n_experts = config.n_experts, top_k = config.top_k;
    ensure_rows(cache.dlogits, cache.tokens, n_experts);
    cache.dprobability.resize(static_cast<std::size_t>(n_experts));
    const double choices = static_cast<double>(std::max<Index>(1, cache.tokens * top_k));
    for (Index e = 0; e < n_experts; ++e)
      cache.dprobability[static_cast<std::size_t>(e)] =
          static_cast<T>(config.balance_weight * static_cast<double>(n_experts * cache.load(e)) /
                         (choices * static_cast<double>(std::max<Index>(1, cache.tokens))));
    parallel_for(cache.tokens, row_chunk, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) {
        const Index* const chosen = cache.chosen.data() + n * top_k;
        const T* const weight = cache.weight.data() + n * top_k;
        T* const dlogits = cache.dlogits.data() + n * n_experts;
        std::copy(cache.dprobability.begin(), cache.dprobability.end(), dlogits);
        const auto dweight = [&](Index j) {
          const Index row = cache.packed_row[static_cast<std::size_t>(n * top_k + j)];
          return dy.row(n).dot(packed(cache.packed_y, row, 1).row(0));
        };
        if (top_k == 1) dlogits[chosen[0]] += dweight(0);
        simd::softmax_row_backward(cache.probability.data() + n * n_experts, dlogits, n_experts, dlogits);
        // ∂L/∂w_j waits where the gradient of the expert's output will be.
        const auto to_expert = [&](Index j) {
          return cache.dpacked.data() + cache.packed_row[static_cast<std::size_t>(n * top_k + j)] * dim;
        };
        T mean = 0;
        for (Index j = 0; top_k > 1 && j < top_k; ++j) mean += weight[j] * (*to_expert(j) = dweight(j));
        for (Index j = 0; top_k > 1 && j < top_k; ++j) dlogits[chosen[j]] += weight[j] * (*to_expert(j) - mean);
        for (Index j = 0; j < top_k; ++j) {
          T* const to = to_expert(j);
          for (Index d = 0; d < dim; ++d) to[d] = weight[j] * dy.data()[n * dim + d];
        }
      }
    });
  }
};

}  // namespace rbar

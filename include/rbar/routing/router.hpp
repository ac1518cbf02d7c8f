// Which tokens are worth attention. Incoherent, low-entropy tokens have low scores and get it; the
// others are mixed with a neighbour (mixer.hpp):
//   score = w_e σ(var(x)) + w_c R̄(x) + w_l σ(w·x + b)
// var = variance over features with n − 1, R̄ = phase coherence (coherence/phase_coherence.hpp).
// Source: the CoRT package 0.1.0, CoherentRouter and AdaptiveCoherentRouter.
#pragma once

#include "rbar/attention/routed_rows.hpp"
#include "rbar/coherence/phase_coherence.hpp"
#include "rbar/core/causality.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/routing/score_threshold.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace rbar {

struct RouterConfig {
  Index d_model = 0;
  double route_frac = 0.15;  // share of tokens that goes to attention, 0 < share <= 1
  double entropy_weight = 0.4;
  double coherence_weight = 0.4;
  double learned_weight = 0.2;
  CoherenceMode coherence_mode = CoherenceMode::combined;
  Index coherence_window = 8;
  Index coherence_offsets = 4;  // of CoherenceMode::cross
  Causality causality = Causality::causal;

  CoherenceConfig coherence() const { return {coherence_mode, coherence_window, coherence_offsets, causality}; }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("route_frac", route_frac);
    visit("entropy_weight", entropy_weight);
    visit("coherence_weight", coherence_weight);
    visit("learned_weight", learned_weight);
    visit("coherence_mode", coherence_mode);
    visit("coherence_window", coherence_window);
    visit("coherence_offsets", coherence_offsets);
    visit("causality", causality);
  }

  void validate() const {
    require(d_model >= 2, "RouterConfig", "d_model", "at least 2 (a variance needs two features)", d_model);
    require(route_frac > 0 && route_frac <= 1, "RouterConfig", "route_frac", "0 < route_frac <= 1", route_frac);
    for (const double weight : {entropy_weight, coherence_weight, learned_weight})
      require(std::isfinite(weight), "RouterConfig", "weight of the score", "a finite number", weight);
    coherence().validate();
  }
};

// What a router did with a batch: shares of the tokens, means over them.
struct RoutingStats {
  double attention_share = 0;
  double mixing_share = 0;
  double mean_coherence = 0;
  double mean_score = 0;  // what the CoRT package reports as its "mean coherence"
};

// The decision. Rows are numbers into [batch · tokens], ascending; those of sequence b lie from offsets[b] to
// offsets[b + 1].
struct Routing {
  Tensor<bool, 2> attention_mask;                        // [B, T]
  std::vector<Index> attention, mixing;                  // the rows of either kind
  std::vector<Index> attention_offsets, mixing_offsets;  // [B + 1]

  RoutedRows attention_rows() const {
    return {attention.data(), attention_offsets.data(), attention_mask.dimension(0)};
  }
  RoutedRows mixing_rows() const { return {mixing.data(), mixing_offsets.data(), attention_mask.dimension(0)}; }

  // Lists the rows of the mask. Memory grows only when the batch does.
  void list_rows() {
    const Index batch = attention_mask.dimension(0), tokens = attention_mask.dimension(1);
    for (auto* list : {&attention, &mixing}) {
      list->clear();
      list->reserve(static_cast<std::size_t>(batch * tokens));
    }
    attention_offsets.assign(1, 0);
    mixing_offsets.assign(1, 0);
    for (Index row = 0; row < batch * tokens; ++row) {
      (attention_mask.data()[row] ? attention : mixing).push_back(row);
      if ((row + 1) % tokens != 0) continue;
      attention_offsets.push_back(static_cast<Index>(attention.size()));
      mixing_offsets.push_back(static_cast<Index>(mixing.size()));
    }
  }
};

template <class T>
struct CoherentRouter {
  using Scalar = T;

  RouterConfig config;
  Linear<T> route_proj;         // [1, D]
  ScoreThreshold<T> threshold;  // buffer; only Causality::causal reads it

  struct Cache {
    Tensor<T, 2> scores;     // [B, T]
    Tensor<T, 2> coherence;  // [B, T]
    Routing routing;
    RoutingStats stats;

    CoherenceCache<T> phases;
    Tensor<T, 2> entropy;                  // [B, T] σ(var)
    Tensor<T, 2> learned;                  // [B, T] σ(w·x + b)
    std::vector<Index> order;              // [T] scratch of the choice of the k lowest
    mutable Tensor<T, 2> score_gradients;  // [B, T] scratch of backward: first of R̄, then of w·x + b
  };
  // Streaming: what the coherence of the next tokens needs of the earlier ones.
  struct State {
    CoherenceState<T> phases;
    Cache cache;  // decision and stats of the last call
  };

  CoherentRouter() = default;
  CoherentRouter(const RouterConfig& config_, Rng& rng) : config(config_) {
    config.validate();
    route_proj = Linear<T>(config.d_model, 1, /*has_bias=*/true, rng);
    // For layer-normed input: var = 1, R̄ of normal features about .45, the learned term spread around ½.
    const double mean = 0.73 * config.entropy_weight + 0.45 * config.coherence_weight + 0.5 * config.learned_weight;
    const double deviation = std::hypot(0.05 * config.coherence_weight, 0.25 * config.learned_weight);
    threshold = ScoreThreshold<T>(config.route_frac, mean, deviation);
  }

  // hidden [B, T, D] -> cache.scores, cache.routing, cache.stats.
  // Errors: another D, no tokens, a NaN or an infinity in `hidden`.
  void forward(ConstTensorView<T, 3> hidden, Cache& cache) const {
    compute_scores(hidden, cache);
    decide(config.route_frac, cache);
  }

  // The two halves of `forward`, for callers that take the share from the scores.
  void compute_scores(ConstTensorView<T, 3> hidden, Cache& cache) const {
    check("CoherentRouter::forward", hidden);
    coherence_forward<T>(hidden, config.coherence(), cache.coherence, cache.phases);
    score(hidden, cache);
  }
  // Causal: score < τ goes to attention, whatever the share. Reference: the max(1, ⌊T·share⌋) lowest
  // scores of each sequence do, which sees the future.
  void decide(double share, Cache& cache) const {
    Routing& routing = cache.routing;
    const Index batch = cache.scores.dimension(0), tokens = cache.scores.dimension(1);
    ensure_shape(routing.attention_mask, {batch, tokens});
    if (config.causality == Causality::causal) {
      for (Index row = 0; row < batch * tokens; ++row)
        routing.attention_mask.data()[row] = cache.scores.data()[row] < threshold();
    } else {
      for (Index sequence = 0; sequence < batch; ++sequence) choose_lowest(sequence, share, cache);
    }
    routing.list_rows();
    const auto count = static_cast<double>(batch * tokens);
    cache.stats.attention_share = static_cast<double>(routing.attention.size()) / count;
    cache.stats.mixing_share = static_cast<double>(routing.mixing.size()) / count;
  }

  // dscores [B, T] -> dhidden [B, T, D] (accumulates). The decision itself has no gradient.
  void backward(ConstTensorView<T, 2> dscores, ConstTensorView<T, 3> hidden, const Cache& cache, Tensor<T, 3>& dhidden,
                CoherentRouter& grad) const {
    check("CoherentRouter::backward", hidden);
    const Index count = hidden.dimension(0) * hidden.dimension(1), dim = config.d_model;
    require_shape("CoherentRouter::backward", "dscores", dscores, {hidden.dimension(0), hidden.dimension(1)});
    require_shape("CoherentRouter::backward", "dhidden", dhidden, {hidden.dimension(0), hidden.dimension(1), dim});
    ensure_shape(cache.score_gradients, shape_of(cache.scores));
    T* const gradients = cache.score_gradients.data();

    const T coherence_weight = static_cast<T>(config.coherence_weight);
    for (Index row = 0; row < count; ++row) gradients[row] = coherence_weight * dscores.data()[row];
    coherence_backward<T>(view(std::as_const(cache.score_gradients)), hidden, config.coherence(), cache.phases,
                          dhidden);

    const T entropy_weight = static_cast<T>(config.entropy_weight);
    const T learned_weight = static_cast<T>(config.learned_weight);
    parallel_for(count, row_chunk, [&](Index begin, Index end) {
      const auto x = rows(hidden);
      auto dx = rows(dhidden);
      for (Index row = begin; row < end; ++row) {
        const T dscore = dscores.data()[row];
        const T e = cache.entropy.data()[row], l = cache.learned.data()[row];
        const T dvariance = entropy_weight * dscore * e * (T(1) - e);
        const T dlogit = gradients[row] = learned_weight * dscore * l * (T(1) - l);
        const T slope = T(2) * dvariance / static_cast<T>(dim - 1);  // ∂var/∂x = 2 (x − mean) / (n − 1)
        dx.row(row).array() += slope * (x.row(row).array() - x.row(row).mean()) + dlogit * projection().array();
      }
    });
    gemm(Transpose::no, Transpose::no, 1, dim, count, gradients, count, hidden.data(), dim,
         grad.route_proj.weight.data(), dim, /*accumulate=*/true);
    for (Index row = 0; row < count; ++row) grad.route_proj.bias(0) += gradients[row];
  }

  // The next tokens [B, new, D] of a stream: the decisions `forward` takes for them.
  void step(ConstTensorView<T, 3> hidden, State& state) const {
    check("CoherentRouter::step", hidden);
    require(config.causality == Causality::causal, "CoherentRouter::step", "causality", "causal", "reference");
    coherence_step<T>(hidden, config.coherence(), state.cache.coherence, state.phases);
    score(hidden, state.cache);
    decide(config.route_frac, state.cache);
  }

  // Between training steps: moves τ towards the share `budget` (default: route_frac).
  void adapt(const Cache& cache) { adapt(cache, config.route_frac); }
  void adapt(const Cache& cache, double budget) {
    if (config.causality == Causality::causal) threshold.adapt(elements(cache.scores), budget);
  }

  void parameters(auto&& visit) { visit_layer(visit, "route_proj", route_proj); }
  void buffers(auto&& visit) { threshold.buffers(visit); }

 private:
  static constexpr Index row_chunk = 64;

  auto projection() const {
    return Eigen::Map<const Eigen::Matrix<T, 1, Eigen::Dynamic>>(route_proj.weight.data(), config.d_model);
  }

  void check(std::string_view operation, ConstTensorView<T, 3> hidden) const {
    require_shape(operation, "hidden", hidden, {-1, -1, config.d_model});
    require(hidden.size() > 0, operation, "hidden", "at least one token", hidden.size());
  }

  static T sigmoid(T x) { return T(1) / (T(1) + std::exp(-x)); }

  void score(ConstTensorView<T, 3> hidden, Cache& cache) const {
    const Shape<2> shape{hidden.dimension(0), hidden.dimension(1)};
    ensure_shape(cache.scores, shape);
    ensure_shape(cache.entropy, shape);
    ensure_shape(cache.learned, shape);
    const T entropy_weight = static_cast<T>(config.entropy_weight);
    const T coherence_weight = static_cast<T>(config.coherence_weight);
    const T learned_weight = static_cast<T>(config.learned_weight);
    parallel_for(shape[0] * shape[1], row_chunk, [&](Index begin, Index end) {
      const auto x = rows(hidden);
      for (Index row = begin; row < end; ++row) {
        const T mean = x.row(row).mean();
        const T variance = (x.row(row).array() - mean).square().sum() / static_cast<T>(config.d_model - 1);
        const T e = sigmoid(variance), l = sigmoid(x.row(row).dot(projection()) + route_proj.bias(0));
        cache.entropy.data()[row] = e;
        cache.learned.data()[row] = l;
        cache.scores.data()[row] =
            entropy_weight * e + coherence_weight * cache.coherence.data()[row] + learned_weight * l;
      }
    });
    // A NaN or an infinity anywhere in a row makes its variance NaN, so looking at the scores is enough.
    require_finite("CoherentRouter", "score (of hidden)", std::span<const T>(elements(cache.scores)));
    cache.stats.mean_coherence = mean(cache.coherence);
    cache.stats.mean_score = mean(cache.scores);
  }

  static double mean(const Tensor<T, 2>& values) {
    double sum = 0;
    for (const T value : elements(values)) sum += static_cast<double>(value);
    return sum / static_cast<double>(values.size());
  }

  // Marks the max(1, ⌊T·share⌋) lowest scores of one sequence; the earlier token wins a tie.
  static void choose_lowest(Index sequence, double share, Cache& cache) {
    const Index tokens = cache.scores.dimension(1);
    const Index chosen = std::clamp(static_cast<Index>(static_cast<double>(tokens) * share), Index{1}, tokens);
    const T* scores = cache.scores.data() + sequence * tokens;
    bool* mask = cache.routing.attention_mask.data() + sequence * tokens;
    cache.order.resize(static_cast<std::size_t>(tokens));
    std::iota(cache.order.begin(), cache.order.end(), Index{0});
    std::nth_element(cache.order.begin(), cache.order.begin() + (chosen - 1), cache.order.end(),
                     [&](Index a, Index b) { return scores[a] != scores[b] ? scores[a] < scores[b] : a < b; });
    std::fill(mask, mask + tokens, false);
    for (Index i = 0; i < chosen; ++i) mask[cache.order[static_cast<std::size_t>(i)]] = true;
  }
};

}  // namespace rbar

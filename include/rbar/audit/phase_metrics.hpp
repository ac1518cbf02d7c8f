// What the phases of a phase-modulated model do on a text, and how sure the model is: order parameter R, coupling K,
// temperature τ and gate λ of every layer, entropy of the attention and of the next token, and the trace of the
// empirical Fisher information,
//   tr F = mean over the sequences of ‖∇ log p(targets | inputs)‖²,   log p = Σ_t log p(target_t | inputs up to t),
// the gradient by all parameters, of one sequence at a time. Interventions that are in force count.
#pragma once

#include "rbar/model/pma_lm.hpp"
#include "rbar/train/data.hpp"
#include "rbar/train/flat_parameters.hpp"
#include "rbar/train/loss.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace rbar {
inline namespace audit {

struct PhaseMetricsOptions {
  bool attention_entropy = true;  // costs a backward pass of every attention
  bool fisher = false;            // costs a forward and a backward pass of every sequence
  // Of a text:
  Index window = 128;
  Index batch_size = 16;  // changes speed and memory only
  Index max_windows = 0;  // consecutive, from the start; 0: all
};

// Means over tokens, and over heads and layers where a token has several. Entropies in nats.
struct PhaseMetrics {
  struct Layer {
    double R_mean = 0;  // of what the oscillators settled on, an override of R or not; 1 in a layer without oscillators
    double coupling = 0, temperature = 0, gate = 0;  // K, τ, λ as used
    double alpha = 0, beta = 0;                      // of τ, as learned
    double attention_entropy = 0;                    // 0 unless asked for
    Tensor<double, 2> order_parameter;               // R of every token [batch, tokens]; only of a single batch
  };
  Index tokens = 0, sequences = 0;
  double nats = 0;  // mean loss
  double next_token_entropy = 0;
  double R_mean = 0;
  double attention_entropy = 0;
  double fisher_trace = 0;  // 0 unless asked for
  std::vector<Layer> layers;

  double perplexity() const { return std::exp(nats); }
};

}  // namespace audit

namespace detail {

// Mean of −Σ_v p_v log p_v over the rows [N, V], p = softmax(logits).
template <class T>
double mean_entropy(ConstMatrixView<T> logits) {
  const Index vocabulary = logits.cols();
  const double sum = parallel_sum(logits.rows(), std::max<Index>(1, 4096 / vocabulary), [&](Index begin, Index end) {
    double partial = 0;
    for (Index n = begin; n < end; ++n) {
      const T* row = logits.data() + n * vocabulary;
      const double largest = static_cast<double>(*std::max_element(row, row + vocabulary));
      double total = 0, weighted = 0;
      for (Index v = 0; v < vocabulary; ++v) {
        const double shifted = static_cast<double>(row[v]) - largest, term = std::exp(shifted);
        total += term;
        if (term > 0) weighted += shifted * term;
      }
      partial += std::log(total) - weighted / total;
    }
    return partial;
  });
  return sum / static_cast<double>(logits.rows());
}

template <class Tensorial>
double mean_of(const Tensorial& tensor) {
  double sum = 0;
  for (const auto value : elements(tensor)) sum += static_cast<double>(value);
  return sum / static_cast<double>(tensor.size());
}

// Measures batch after batch; the buffers stay.
template <class T>
class PhaseMeter {
 public:
  using Model = PhaseModulatedAttentionLM<T>;

  PhaseMeter(const Model& model, const PhaseMetricsOptions& options) : model_(model), options_(options) {
    if (options.fisher) gradient_ = zeros_like(model);
  }

  PhaseMetrics measure(const TokenBatch& batch) {
    const Index sequences = batch.inputs.dimension(0), tokens = batch.inputs.dimension(1);
    require(batch.inputs.size() > 0, "phase_metrics", "tokens", "at least one", batch.inputs.size());
    PhaseMetrics metrics;
    metrics.tokens = batch.inputs.size();
    metrics.sequences = sequences;
    model_.forward(view(batch.inputs), logits_, cache_);
    const Tensor<T, 3>& logits = logits_;
    metrics.nats = cross_entropy<T>(view(logits), view(batch.targets), nullptr);
    metrics.next_token_entropy = mean_entropy<T>(rows(logits));
    const double share = 1 / static_cast<double>(std::max<std::size_t>(1, model_.pma.size()));
    for (std::size_t l = 0; l < model_.pma.size(); ++l) {
      const auto& attention = model_.pma[l].mixer;
      const auto& cache = cache_.pma[l].mixer;
      PhaseMetrics::Layer layer;
      layer.R_mean = mean_of(cache.order_parameter);
      layer.coupling = mean_of(cache.coupling);
      layer.temperature = mean_of(cache.temperature);
      layer.gate = cache.applied.gate.value_or(attention.gate());
      if (attention.config.adaptive_temperature) {
        layer.alpha = static_cast<double>(attention.alpha(0));
        layer.beta = static_cast<double>(attention.beta(0));
      }
      ensure_shape(layer.order_parameter, {sequences, tokens});
      for (Index n = 0; n < metrics.tokens; ++n)
        layer.order_parameter.data()[n] = static_cast<double>(cache.order_parameter(n));
      if (options_.attention_entropy) {
        attention.attention_entropy(cache, entropy_);
        layer.attention_entropy = mean_of(entropy_);
      }
      metrics.R_mean += share * layer.R_mean;
      metrics.attention_entropy += share * layer.attention_entropy;
      metrics.layers.push_back(std::move(layer));
    }
    if (options_.fisher) metrics.fisher_trace = fisher_trace(batch);
    return metrics;
  }

 private:
  double fisher_trace(const TokenBatch& batch) {
    const Index sequences = batch.inputs.dimension(0), tokens = batch.inputs.dimension(1);
    const FlatParameters<T> flat(gradient_);
    double sum = 0;
    for (Index b = 0; b < sequences; ++b) {
      model_.forward(view(&batch.inputs(b, 0), 1, tokens), logits_, cache_);
      const Tensor<T, 3>& logits = logits_;
      cross_entropy<T>(view(logits), view(&batch.targets(b, 0), 1, tokens), &logits_);
      flat.set_zero();
      model_.backward(view(logits), cache_, gradient_);
      const double norm = static_cast<double>(tokens) * global_norm(flat);  // the loss is a mean over the tokens
      sum += norm * norm;
    }
    return sum / static_cast<double>(sequences);
  }

  const Model& model_;
  PhaseMetricsOptions options_;
  Model gradient_;
  typename Model::Cache cache_;
  Tensor<T, 3> logits_, entropy_;
};

}  // namespace detail

inline namespace audit {

// Of one batch. Errors: an empty one, and what the model and the loss refuse.
template <class T>
PhaseMetrics phase_metrics(const PhaseModulatedAttentionLM<T>& model, const TokenBatch& batch,
                           const PhaseMetricsOptions& options = {}) {
  return detail::PhaseMeter<T>(model, options).measure(batch);
}

// Of a text in consecutive windows: means over all its tokens (the Fisher trace over its windows).
template <class T>
PhaseMetrics phase_metrics(const PhaseModulatedAttentionLM<T>& model, TokenSpan text,
                           const PhaseMetricsOptions& options = {}) {
  require(options.max_windows >= 0, "phase_metrics", "max_windows", "at least 0", options.max_windows);
  detail::PhaseMeter<T> meter(model, options);
  ConsecutiveWindows windows(text, options.window);
  TokenBatch batch;
  PhaseMetrics all;
  all.layers.resize(model.pma.size());
  const Index most = options.max_windows > 0 ? options.max_windows : static_cast<Index>(text.size());
  while (all.sequences < most && windows.next(std::min(options.batch_size, most - all.sequences), batch)) {
    const PhaseMetrics part = meter.measure(batch);
    all.tokens += part.tokens;
    all.sequences += part.sequences;
    const double share = static_cast<double>(part.tokens) / static_cast<double>(all.tokens);
    const auto mix = [](double& mean, double value, double weight) { mean += weight * (value - mean); };
    mix(all.nats, part.nats, share);
    mix(all.next_token_entropy, part.next_token_entropy, share);
    mix(all.R_mean, part.R_mean, share);
    mix(all.attention_entropy, part.attention_entropy, share);
    mix(all.fisher_trace, part.fisher_trace, static_cast<double>(part.sequences) / static_cast<double>(all.sequences));
    for (std::size_t l = 0; l < all.layers.size(); ++l) {
      for (const auto member :
           {&PhaseMetrics::Layer::R_mean, &PhaseMetrics::Layer::coupling, &PhaseMetrics::Layer::temperature,
            &PhaseMetrics::Layer::gate, &PhaseMetrics::Layer::alpha, &PhaseMetrics::Layer::beta,
            &PhaseMetrics::Layer::attention_entropy})
        mix(all.layers[l].*member, part.layers[l].*member, share);
    }
  }
  return all;
}

}  // namespace audit
}  // namespace rbar

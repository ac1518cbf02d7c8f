// Small Coherence-Gated Transformers, and the definition of one written with plain loops.
#pragma once

#include "model/transformer_support.hpp"
#include "rbar/model/cgt.hpp"
#include "sheaf/naive_sheaf.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

namespace cgt_test {

using namespace rbar;
using transformer_test::random_tokens;
using transformer_test::Row;

inline CGTConfig tiny_config() {
  CGTConfig config;
  config.vocab_size = 13;
  config.d_model = 12;
  config.n_heads = 3;
  config.n_layers = 5;
  config.reflex_layers = 1;
  config.standard_layers = 3;
  config.reflex_window = 4;
  config.d_ff = 10;
  config.n_experts = 3;
  config.top_k = 2;
  config.max_seq_len = 24;
  config.dropout = 0;
  config.energy_weight = 0.05;
  config.router.energy_dim = 5;
  config.router.share_reflex = 0.4;
  config.router.share_standard = 0.3;
  config.router.share_deep = 0.25;
  return config;
}

// Kinds of model that differ in what their passes do.
inline CGTConfig variant(int number) {
  auto config = tiny_config();
  if (number == 1) config.router.route_at = RouteAt::embedding;
  if (number == 2) {  // grouped heads, rotary positions, its own head, no gate
    config.n_heads = 2;
    config.n_kv_heads = 1;
    config.positions = Positions::rotary;
    config.tie_embeddings = false;
    config.gate = false;
    config.top_k = 1;
  }
  if (number == 3) {  // no standard layers
    config.standard_layers = 1;
    config.map = RestrictionMapKind::low_rank;
    config.map_rank = 3;
  }
  if (number == 4) {  // tokens that leave in the middle of a lane
    config.n_layers = 7;
    config.standard_layers = 4;
    config.early_exit.enabled = true;
    config.early_exit.epsilon = 0.25;
  }
  if (number == 5) {  // layers that skip blocks of keys
    config.sparsity.enabled = true;
    config.sparsity.epsilon = 0.3;
    config.sparsity.block = 2;
    config.sparsity.chunk = 4;
    config.sparsity.clusters = 3;
  }
  return config;
}

// Weights large enough to matter, thresholds in the middle of the energies of some text.
template <class T>
CoherenceGatedTransformer<T> random_model(const CGTConfig& config, std::uint64_t seed, double deviation = 0.15) {
  Rng rng(seed);
  CoherenceGatedTransformer<T> model(config, rng);
  for (const auto& parameter : parameters_of(model))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, deviation));
  typename CoherenceGatedTransformer<T>::Cache cache;
  Tensor<T, 3> logits;
  const auto tokens = random_tokens(4, config.max_seq_len, config.vocab_size, seed + 1);
  for (int step = 0; step < 3; ++step) {
    model.forward(tokens, logits, cache);
    model.adapt(cache);
  }
  return model;
}

// Tokens of each kind in a pass: reflex, standard and deep or escalated.
template <class Sheet>
std::array<Index, 3> segment_sizes(const Sheet& sheet) {
  std::array<Index, 3> sizes{};
  for (const int segment : sheet.segment) ++sizes[static_cast<std::size_t>(segment)];
  return sizes;
}
template <class Sheet>
bool lanes_are_mixed(const Sheet& sheet) {
  return std::ranges::all_of(segment_sizes(sheet), [](Index size) { return size > 0; });
}

// --- the definition, in double ------------------------------------------------------------------------------------

struct Textbook {
  Tensor<double, 3> logits, final_states;
  std::vector<int> segment;
  std::vector<Tensor<double, 3>> layer_inputs;  // states that every layer finds
  std::array<std::vector<double>, 4> energy;    // normalised, [B·T] at each point
};

inline Row map_row(const RestrictionMap<double>& map, const double* x) {
  return naive::restrict_to_heads(map, x, 1, map.out())[0];
}

// E_i = mean_{j≤i} ‖ρ_q h_i − ρ_k h_j‖² / scale.
inline std::vector<double> textbook_energies(const LaneRouter<double>& router, Index point,
                                             const Tensor<double, 3>& h) {
  std::vector<double> energies;
  for (Index b = 0; b < h.dimension(0); ++b)
    for (Index i = 0; i < h.dimension(1); ++i) {
      const Row q = map_row(router.measure.rho_query, &h(b, i, 0));
      double sum = 0;
      for (Index j = 0; j <= i; ++j) {
        const Row k = map_row(router.measure.rho_key, &h(b, j, 0));
        for (std::size_t d = 0; d < q.size(); ++d) sum += (q[d] - k[d]) * (q[d] - k[d]);
      }
      energies.push_back(sum / static_cast<double>(i + 1) / router.scale(point));
    }
  return energies;
}

inline Row textbook_block(const CGTLayer<double>& layer, const Row& x) {
  if (const auto* plain = std::get_if<FeedForward<double>>(&layer.block.layer))
    return transformer_test::textbook_feed_forward(*plain, x);
  const auto& mixture = std::get<MixtureOfExperts<double>>(layer.block.layer);
  const Row gate = transformer_test::textbook_linear(mixture.gate, x);
  std::vector<std::size_t> order(gate.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return gate[a] > gate[b]; });
  order.resize(static_cast<std::size_t>(mixture.config.top_k));
  double total = 0;
  for (const std::size_t e : order) total += std::exp(gate[e]);
  Row y(x.size());
  for (const std::size_t e : order) {
    const Row expert = transformer_test::textbook_feed_forward(mixture.experts[e], x);
    for (std::size_t d = 0; d < y.size(); ++d) y[d] += std::exp(gate[e]) / total * expert[d];
  }
  return y;
}

inline Tensor<double, 3> textbook_normed(const LayerNorm<double>& norm, const Tensor<double, 3>& h) {
  Tensor<double, 3> normed(h.dimension(0), h.dimension(1), h.dimension(2));
  const Index dim = h.dimension(2);
  for (Index n = 0; n < h.size() / dim; ++n)
    std::ranges::copy(transformer_test::textbook_norm(norm, h.data() + n * dim, static_cast<std::size_t>(dim)),
                      normed.data() + n * dim);
  return normed;
}

// h_row + what the second half of a layer adds to it.
inline void textbook_second_half(const CGTLayer<double>& layer, Index dim, double* h) {
  const auto size = static_cast<std::size_t>(dim);
  const Row added = textbook_block(layer, transformer_test::textbook_norm(layer.norm2, h, size));
  for (std::size_t d = 0; d < size; ++d) h[d] += added[d];
}

inline Textbook textbook(const CoherenceGatedTransformer<double>& model, const Tensor<Token, 2>& tokens) {
  const CGTConfig& config = model.config;
  const Index batch = tokens.dimension(0), length = tokens.dimension(1), dim = config.d_model, count = batch * length;
  const auto thresholds = model.stack.router.thresholds_in_force();
  const bool by_embedding = config.router.route_at == RouteAt::embedding;
  Textbook result;
  result.segment.assign(static_cast<std::size_t>(count), 0);
  Tensor<double, 3> h(batch, length, dim);
  for (Index b = 0; b < batch; ++b)
    for (Index t = 0; t < length; ++t)
      for (Index d = 0; d < dim; ++d) {
        h(b, t, d) = model.ends.token_embedding.weight(tokens(b, t), d);
        if (config.positions == Positions::learned) h(b, t, d) += model.ends.position_embedding.weight(t, d);
      }
  result.energy[0] = textbook_energies(model.stack.router, 0, h);
  Tensor<double, 3> entry = h;
  for (Index l = 0; l < config.n_layers; ++l) {
    const int segment = static_cast<int>(config.kind_of(l));
    if (segment > 0 && (l == config.reflex_end() || l == config.standard_end())) {
      entry = h;
      result.energy[static_cast<std::size_t>(segment)] = textbook_energies(model.stack.router, segment, h);
      const auto& deciding = result.energy[by_embedding ? 0 : static_cast<std::size_t>(segment)];
      for (std::size_t n = 0; n < deciding.size(); ++n)
        if (result.segment[n] == segment - 1 && deciding[n] >= (segment == 1 ? thresholds.reflex : thresholds.standard))
          result.segment[n] = segment;
    }
    result.layer_inputs.push_back(h);
    const CGTLayer<double>& layer = model.stack.layers[static_cast<std::size_t>(l)];
    const auto attended = naive::sheaf_attention(layer.attention, textbook_normed(layer.norm1, h));
    const bool ends_segment = l + 1 == config.standard_end() || l + 1 == config.n_layers;
    for (Index n = 0; n < count; ++n) {
      if (result.segment[static_cast<std::size_t>(n)] < segment) continue;
      double* row = h.data() + n * dim;
      for (Index d = 0; d < dim; ++d) row[d] += attended.data()[n * dim + d];
      if (segment == 0) continue;
      textbook_second_half(layer, dim, row);
      if (!ends_segment || !config.gate) continue;
      const double energy =
          result.energy[by_embedding ? 0 : static_cast<std::size_t>(segment)][static_cast<std::size_t>(n)];
      const double gate = energy / (energy + (segment == 1 ? thresholds.reflex : thresholds.standard));
      for (Index d = 0; d < dim; ++d) {
        const double before = entry.data()[n * dim + d];
        row[d] = before + gate * (row[d] - before);
      }
    }
  }
  result.energy[3] = textbook_energies(model.stack.router, 3, h);
  result.final_states = h;
  result.logits = Tensor<double, 3>(batch, length, config.vocab_size);
  const auto& head = config.tie_embeddings ? model.ends.token_embedding.weight : model.ends.lm_head.weight;
  const Tensor<double, 3> normed = textbook_normed(model.ends.final_norm, h);
  for (Index n = 0; n < count; ++n)
    for (Index v = 0; v < config.vocab_size; ++v) {
      double sum = 0;
      for (Index d = 0; d < dim; ++d) sum += head(v, d) * normed.data()[n * dim + d];
      result.logits.data()[n * config.vocab_size + v] = sum;
    }
  return result;
}

}  // namespace cgt_test

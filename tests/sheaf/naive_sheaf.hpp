// Sheaf attention as its definition reads, in double: every energy a sum of squared differences, no square expanded.
#pragma once

#include "attention/naive_multi_head.hpp"
#include "rbar/sheaf/sheaf_attention.hpp"
#include "support/differences.hpp"

#include <string>
#include <utility>

namespace naive {

inline Heads restrict_to_heads(const RestrictionMap<double>& map, const double* x, Index heads, Index head_dim) {
  const Matrix<double> a = map.matrix();
  Heads result(static_cast<std::size_t>(heads), std::vector<double>(static_cast<std::size_t>(head_dim)));
  for (Index out = 0; out < map.out(); ++out) {
    double sum = map.bias.size() > 0 ? map.bias(out) : 0;
    for (Index i = 0; i < map.in(); ++i) sum += a(out, i) * x[i];
    result[static_cast<std::size_t>(out / head_dim)][static_cast<std::size_t>(out % head_dim)] = sum;
  }
  return result;
}

inline void turn(const SheafAttentionConfig& config, Index position, Heads& heads) {
  MultiHeadAttentionConfig same;
  same.d_model = config.d_model, same.n_heads = config.n_heads, same.head_dim = config.dim_per_head();
  same.rotary = config.rotary, same.rope_base = config.rope_base;
  turn(same, position, heads);
}

using EdgeWeight = std::function<double(Index b, Index i, Index j)>;

// y of every token, when only rows with is_key(row) are keys.
inline Tensor<double, 3> sheaf_attention(
    const SheafAttention<double>& layer, const Tensor<double, 3>& x,
    const std::function<bool(Index)>& is_key = [](Index) { return true; },
    const EdgeWeight& weight = [](Index, Index, Index) { return 1.0; }) {
  const auto& config = layer.config;
  const Index batch = x.dimension(0), tokens = x.dimension(1), dim = x.dimension(2), head_dim = config.dim_per_head();
  const Index group = config.n_heads / config.kv_heads();
  Tensor<double, 3> y(batch, tokens, dim);
  for (Index b = 0; b < batch; ++b) {
    std::vector<Heads> keys, values;
    for (Index t = 0; t < tokens; ++t) {
      keys.push_back(restrict_to_heads(layer.rho_key, &x(b, t, 0), config.kv_heads(), head_dim));
      values.push_back(restrict_to_heads(layer.rho_value, &x(b, t, 0), config.kv_heads(), head_dim));
      turn(config, t, keys.back());
    }
    for (Index t = 0; t < tokens; ++t) {
      Heads query = restrict_to_heads(layer.rho_query, &x(b, t, 0), config.n_heads, head_dim);
      turn(config, t, query);
      std::vector<double> attended(static_cast<std::size_t>(config.n_heads * head_dim));
      for (Index h = 0; h < config.n_heads; ++h) {
        const auto kv = static_cast<std::size_t>(h / group);
        const auto& q = query[static_cast<std::size_t>(h)];
        const double beta = std::log1p(std::exp(layer.beta(h)));
        std::vector<std::pair<double, const double*>> logits;
        double largest = -INFINITY;
        for (Index j = 0; j < tokens; ++j) {
          if (config.causal && j > t) continue;
          if (config.window > 0 && j <= t - config.window) continue;
          if (!is_key(b * tokens + j)) continue;
          double energy = 0;
          for (std::size_t d = 0; d < q.size(); ++d) {
            const double residual = q[d] - keys[static_cast<std::size_t>(j)][kv][d];
            energy += residual * residual;
          }
          logits.emplace_back(-beta * weight(b, t, j) * energy, values[static_cast<std::size_t>(j)][kv].data());
          largest = std::max(largest, logits.back().first);
        }
        double total = 0;
        for (const auto& [logit, value] : logits) total += std::exp(logit - largest);
        for (const auto& [logit, value] : logits)
          for (std::size_t d = 0; d < q.size(); ++d)
            attended[static_cast<std::size_t>(h) * q.size() + d] += std::exp(logit - largest) / total * value[d];
      }
      for (Index o = 0; o < dim; ++o) {
        double sum = layer.out_proj.bias.size() > 0 ? layer.out_proj.bias(o) : 0;
        for (std::size_t i = 0; i < attended.size(); ++i)
          sum += layer.out_proj.weight(o, static_cast<Index>(i)) * attended[i];
        y(b, t, o) = sum;
      }
    }
  }
  return y;
}

// Grouped heads, odd sizes, both rotary layouts, windows, maps of several kinds.
inline std::vector<SheafAttentionConfig> sheaf_configs() {
  std::vector<SheafAttentionConfig> configs;
  for (const auto& c : multi_head_configs()) {
    SheafAttentionConfig s;
    s.d_model = c.d_model, s.n_heads = c.n_heads, s.n_kv_heads = c.n_kv_heads, s.head_dim = c.head_dim;
    s.bias = c.bias, s.causal = c.causal, s.window = c.window, s.rotary = c.rotary, s.rope_base = c.rope_base;
    configs.push_back(s);
  }
  configs[1].map = RestrictionMapKind::diagonal, configs[1].beta = 0.7;
  configs[3].map = RestrictionMapKind::low_rank, configs[3].map_rank = 2;
  configs[4].learn_beta = false;
  return configs;
}

inline std::string describe(const SheafAttentionConfig& c) {
  return "d_model " + std::to_string(c.d_model) + ", heads " + std::to_string(c.n_heads) + "/" +
         std::to_string(c.kv_heads()) + " of " + std::to_string(c.dim_per_head()) + ", window " +
         std::to_string(c.window) + ", rotary " + name_of(c.rotary) + ", maps " + name_of(c.map) +
         (c.causal ? ", causal" : ", bidirectional");
}

// With biases away from zero, where mistakes hide, and another β for every head.
template <class T>
SheafAttention<T> random_sheaf(const SheafAttentionConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  SheafAttention<T> layer(config, rng);
  for (const auto& parameter : parameters_of(layer))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, 0.2));
  return layer;
}

using ::test::largest_difference;

}  // namespace naive

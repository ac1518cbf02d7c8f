// Multi-head attention as a textbook writes it, in double: every projection, every logit, one at a time.
#pragma once

#include "rbar/attention/multi_head_attention.hpp"
#include "support/catch.hpp"

#include <complex>
#include <functional>
#include <vector>

namespace naive {

using namespace rbar;
using Heads = std::vector<std::vector<double>>;  // [head][feature]

inline Heads project(const Linear<double>& layer, const double* x, Index heads, Index head_dim) {
  Heads result(static_cast<std::size_t>(heads), std::vector<double>(static_cast<std::size_t>(head_dim)));
  for (Index h = 0; h < heads; ++h)
    for (Index d = 0; d < head_dim; ++d) {
      const Index out = h * head_dim + d;
      double sum = layer.bias.size() > 0 ? layer.bias(out) : 0;
      for (Index i = 0; i < layer.in(); ++i) sum += layer.weight(out, i) * x[i];
      result[static_cast<std::size_t>(h)][static_cast<std::size_t>(d)] = sum;
    }
  return result;
}

inline void turn(const MultiHeadAttentionConfig& config, Index position, Heads& heads) {
  if (config.rotary == Rotary::none) return;
  const auto half = static_cast<std::size_t>(config.dim_per_head() / 2);
  for (auto& head : heads)
    for (std::size_t i = 0; i < half; ++i) {
      double& a = head[config.rotary == Rotary::interleaved ? 2 * i : i];
      double& b = head[config.rotary == Rotary::interleaved ? 2 * i + 1 : i + half];
      const double frequency = std::pow(config.rope_base, -static_cast<double>(i) / static_cast<double>(half));
      const auto turned = std::complex(a, b) * std::polar(1.0, static_cast<double>(position) * frequency);
      a = turned.real(), b = turned.imag();
    }
}

// y of every token, when only rows with is_key(row) are keys.
inline Tensor<double, 3> multi_head_attention(const MultiHeadAttention<double>& layer, const Tensor<double, 3>& x,
                                              const std::function<bool(Index)>& is_key) {
  const auto& config = layer.config;
  const Index batch = x.dimension(0), tokens = x.dimension(1), dim = x.dimension(2), head_dim = config.dim_per_head();
  const Index group = config.n_heads / config.kv_heads();
  Tensor<double, 3> y(batch, tokens, dim);
  for (Index b = 0; b < batch; ++b) {
    std::vector<Heads> keys, values;
    for (Index t = 0; t < tokens; ++t) {
      keys.push_back(project(layer.k_proj, &x(b, t, 0), config.kv_heads(), head_dim));
      values.push_back(project(layer.v_proj, &x(b, t, 0), config.kv_heads(), head_dim));
      turn(config, t, keys.back());
    }
    for (Index t = 0; t < tokens; ++t) {
      Heads query = project(layer.q_proj, &x(b, t, 0), config.n_heads, head_dim);
      turn(config, t, query);
      std::vector<double> attended(static_cast<std::size_t>(config.n_heads * head_dim));
      for (Index h = 0; h < config.n_heads; ++h) {
        const auto kv = static_cast<std::size_t>(h / group);
        const auto& q = query[static_cast<std::size_t>(h)];
        double total = 0;
        for (Index j = 0; j < tokens; ++j) {
          if (config.causal && j > t) continue;
          if (config.window > 0 && j <= t - config.window) continue;
          if (!is_key(b * tokens + j)) continue;
          const auto& key = keys[static_cast<std::size_t>(j)][kv];
          const auto& value = values[static_cast<std::size_t>(j)][kv];
          double dot = 0;
          for (std::size_t d = 0; d < q.size(); ++d) dot += q[d] * key[d];
          const double weight = std::exp(dot / std::sqrt(static_cast<double>(head_dim)));
          total += weight;
          for (std::size_t d = 0; d < q.size(); ++d)
            attended[static_cast<std::size_t>(h) * q.size() + d] += weight * value[d];
        }
        for (std::size_t d = 0; d < q.size() && total > 0; ++d)
          attended[static_cast<std::size_t>(h) * q.size() + d] /= total;
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

// What the tests of this layer run over: grouped heads, odd sizes, both rotary layouts, windows.
inline std::vector<MultiHeadAttentionConfig> multi_head_configs() {
  const auto config = [](Index d_model, Index heads, Index kv_heads, Index head_dim, bool bias, bool causal,
                         Index window, Rotary rotary) {
    MultiHeadAttentionConfig c;
    c.d_model = d_model, c.n_heads = heads, c.n_kv_heads = kv_heads, c.head_dim = head_dim;
    c.bias = bias, c.causal = causal, c.window = window, c.rotary = rotary, c.rope_base = 100;
    return c;
  };
  return {config(12, 3, 0, 0, true, true, 0, Rotary::none), config(7, 1, 1, 0, true, false, 0, Rotary::none),
          config(8, 4, 2, 6, false, true, 0, Rotary::interleaved),
          config(10, 6, 1, 4, true, true, 0, Rotary::half_split),
          config(12, 2, 2, 0, true, true, 3, Rotary::interleaved)};
}

inline std::string describe(const MultiHeadAttentionConfig& c) {
  return "d_model " + std::to_string(c.d_model) + ", heads " + std::to_string(c.n_heads) + "/" +
         std::to_string(c.kv_heads()) + " of " + std::to_string(c.dim_per_head()) + ", window " +
         std::to_string(c.window) + ", rotary " + name_of(c.rotary) + (c.causal ? ", causal" : ", bidirectional");
}

// With biases away from zero, where mistakes hide.
template <class T>
MultiHeadAttention<T> random_layer(const MultiHeadAttentionConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  MultiHeadAttention<T> layer(config, rng);
  for (const auto& parameter : parameters_of(layer))
    for (T& value : parameter.values()) value += static_cast<T>(rng.normal(0, 0.2));
  return layer;
}
template <class T>
Tensor<T, 3> random_hidden(Index batch, Index tokens, Index dim, std::uint64_t seed) {
  Rng rng(seed);
  Tensor<T, 3> x(batch, tokens, dim);
  normal(x, 1.0, rng);
  return x;
}

}  // namespace naive

// Attention as its definition reads, in double, for the engine's tests: no tiles, no streaming, every
// logit written down. Shapes and numbers are random.
#pragma once

#include "rbar/attention/engine.hpp"
#include "rbar/core/random.hpp"
#include "support/differences.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace naive {

using rbar::Index;

struct Sizes {
  Index batch = 1, queries = 5, keys = 5, heads = 2, kv_heads = 1, dim = 8, value_dim = 8;
};

// Plain [batch, tokens, heads, dim] arrays of one attention problem.
template <class T>
struct Problem {
  Sizes sizes;
  std::vector<T> query, key, value, output, lse, doutput, dquery, dkey, dvalue;

  explicit Problem(const Sizes& s, std::uint64_t seed = 1) : sizes(s) {
    rbar::Rng rng(seed);
    const auto fill = [&](std::vector<T>& v, Index size) {
      v.resize(static_cast<std::size_t>(size));
      for (T& x : v) x = static_cast<T>(rng.normal());
    };
    fill(query, s.batch * s.queries * s.heads * s.dim);
    fill(key, s.batch * s.keys * s.kv_heads * s.dim);
    fill(value, s.batch * s.keys * s.kv_heads * s.value_dim);
    fill(output, s.batch * s.queries * s.heads * s.value_dim);
    fill(doutput, s.batch * s.queries * s.heads * s.value_dim);
    lse.assign(static_cast<std::size_t>(s.batch * s.queries * s.heads), T(7));
    fill(dquery, static_cast<Index>(query.size()));
    fill(dkey, static_cast<Index>(key.size()));
    fill(dvalue, static_cast<Index>(value.size()));
  }
  template <class U>
  explicit Problem(const Problem<U>& o) : sizes(o.sizes) {
    const auto copy = [](const auto& from, auto& to) { to.assign(from.begin(), from.end()); };
    copy(o.query, query), copy(o.key, key), copy(o.value, value), copy(o.output, output), copy(o.lse, lse);
    copy(o.doutput, doutput), copy(o.dquery, dquery), copy(o.dkey, dkey), copy(o.dvalue, dvalue);
  }

  template <class V>
  auto query_like(V& v) {
    return rbar::heads_view(v.data(), sizes.batch, sizes.queries, sizes.heads, sizes.dim);
  }
  template <class V>
  auto key_like(V& v) {
    return rbar::heads_view(v.data(), sizes.batch, sizes.keys, sizes.kv_heads, sizes.dim);
  }
  template <class V>
  auto value_like(V& v) {
    return rbar::heads_view(v.data(), sizes.batch, sizes.keys, sizes.kv_heads, sizes.value_dim);
  }
  template <class V>
  auto output_like(V& v) {
    return rbar::heads_view(v.data(), sizes.batch, sizes.queries, sizes.heads, sizes.value_dim);
  }

  template <class Score, class Mask>
  void attend(const Score& score, const Mask& mask) {
    rbar::attend<T>(query_like(query), key_like(key), value_like(value), score, mask, output_like(output), lse.data());
  }
  template <class Score, class Mask, class Gradient = rbar::NoScoreGradient>
  void backward(const Score& score, const Mask& mask, Gradient&& gradient = {}) {
    rbar::attend_backward<T>(query_like(query), key_like(key), value_like(value), output_like(output),
                             output_like(doutput), lse.data(), score, mask, query_like(dquery), key_like(dkey),
                             value_like(dvalue), gradient);
  }
};

using Visible = std::function<bool(Index b, Index h, Index i, Index j)>;
using Logit = std::function<double(Index b, Index h, Index i, Index j, double dot)>;

inline Logit scaled(double scale) {
  return [scale](Index, Index, Index, Index, double dot) { return scale * dot; };
}
inline bool everything(Index, Index, Index, Index) { return true; }

// output and lse of the definition.
inline void attend(Problem<double>& p, const Logit& logit, const Visible& visible) {
  const Sizes& s = p.sizes;
  std::vector<double> weight(static_cast<std::size_t>(s.keys));
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i) {
        const Index g = h / (s.heads / s.kv_heads);
        const double* q = &p.query[static_cast<std::size_t>(((b * s.queries + i) * s.heads + h) * s.dim)];
        double* out = p.output.data() + ((b * s.queries + i) * s.heads + h) * s.value_dim;
        double largest = -std::numeric_limits<double>::infinity(), sum = 0;
        for (Index j = 0; j < s.keys; ++j) {
          const double* k = p.key.data() + ((b * s.keys + j) * s.kv_heads + g) * s.dim;
          double dot = 0;
          for (Index d = 0; d < s.dim; ++d) dot += q[d] * k[d];
          double& w = weight[static_cast<std::size_t>(j)];
          w = visible(b, h, i, j) ? logit(b, h, i, j, dot) : -std::numeric_limits<double>::infinity();
          largest = std::max(largest, w);
        }
        std::fill_n(out, s.value_dim, 0.0);
        double& lse = p.lse[static_cast<std::size_t>((b * s.queries + i) * s.heads + h)];
        lse = largest;
        if (std::isinf(largest)) continue;
        for (double& w : weight) sum += w = std::exp(w - largest);
        lse += std::log(sum);
        for (Index j = 0; j < s.keys; ++j)
          for (Index d = 0; d < s.value_dim; ++d)
            out[d] += weight[static_cast<std::size_t>(j)] / sum *
                      p.value[static_cast<std::size_t>(((b * s.keys + j) * s.kv_heads + g) * s.value_dim + d)];
      }
}

// Σ doutput∘output of the definition, for central differences.
inline double loss(Problem<double>& p, const Logit& logit, const Visible& visible) {
  attend(p, logit, visible);
  double sum = 0;
  for (std::size_t i = 0; i < p.output.size(); ++i) sum += p.output[i] * p.doutput[i];
  return sum;
}

// Largest |a − b|, relative to the largest |b|. Equal infinities agree; a NaN never does.
template <class A, class B>
double difference(const std::vector<A>& a, const std::vector<B>& b) {
  double worst = 0, largest = 0;
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (x == y && std::isinf(x)) continue;
    worst = test::larger(worst, std::abs(x - y));
    if (std::isfinite(y)) largest = std::max(largest, std::abs(y));
  }
  return largest > 0 ? worst / largest : worst;
}

}  // namespace naive

// Problems for block-sparse sheaf attention, clustered and not, and its definition in double: every energy a sum of
// squared differences, every key written down.
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/sheaf/sparse_sheaf.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace sparse {

using namespace rbar;

struct Sizes {
  Index batch = 1, tokens = 40, heads = 2, kv_heads = 1, dim = 8, value_dim = 8;
};

template <class T>
struct Problem {
  Sizes sizes;
  std::vector<T> query, key, value, beta, norms, output, lse, doutput, dquery, dkey, dvalue, dnorms;
  std::vector<double> dbeta;
  BlockSparsePlan<T> plan;

  // Tokens of `clusters` kinds, `apart` from each other where tokens of one kind are about 1 apart.
  Problem(const Sizes& s, Rng& rng, Index clusters = 4, double apart = 5, double offset = 0, double beta_ = 0.5)
      : sizes(s) {
    const auto shape = [](std::vector<T>& v, Index size) { v.resize(static_cast<std::size_t>(size)); };
    for (auto* v : {&query, &dquery}) shape(*v, s.batch * s.tokens * s.heads * s.dim);
    for (auto* v : {&key, &dkey}) shape(*v, s.batch * s.tokens * s.kv_heads * s.dim);
    for (auto* v : {&value, &dvalue}) shape(*v, s.batch * s.tokens * s.kv_heads * s.value_dim);
    for (auto* v : {&output, &doutput}) shape(*v, s.batch * s.tokens * s.heads * s.value_dim);
    shape(lse, s.batch * s.tokens * s.heads);
    for (auto* v : {&norms, &dnorms}) shape(*v, s.batch * s.tokens * s.kv_heads);
    const double width = 1 / std::sqrt(2.0 * static_cast<double>(s.dim));
    std::vector<double> kinds;
    for (Index i = 0; i < clusters * s.dim; ++i) kinds.push_back(rng.normal(0, apart * width));
    const auto draw = [&](std::vector<T>& rows, Index heads) {
      for (Index row = 0; row < s.batch * s.tokens; ++row) {
        const auto kind = static_cast<Index>(rng.below(static_cast<std::uint64_t>(clusters)));
        for (Index i = 0; i < heads * s.dim; ++i)
          rows.data()[row * heads * s.dim + i] =
              static_cast<T>(offset + kinds.data()[kind * s.dim + i % s.dim] + rng.normal(0, width));
      }
    };
    draw(query, s.heads);
    draw(key, s.kv_heads);
    for (T& v : value) v = static_cast<T>(rng.normal());
    for (T& v : doutput) v = static_cast<T>(rng.normal());
    for (Index h = 0; h < s.heads; ++h) beta.push_back(static_cast<T>(beta_ * rng.uniform(0.5, 2)));
  }

  template <class V>
  auto view(V& rows, Index heads, Index dim) const {
    return heads_view(rows.data(), sizes.batch, sizes.tokens, heads, dim);
  }
  auto queries(auto& rows) const { return view(rows, sizes.heads, sizes.dim); }
  auto keys(auto& rows) const { return view(rows, sizes.kv_heads, sizes.dim); }
  auto values(auto& rows) const { return view(rows, sizes.kv_heads, sizes.value_dim); }
  auto outputs(auto& rows) const { return view(rows, sizes.heads, sizes.value_dim); }

  SheafScore<T> score() {
    square_norms<T>(keys(std::as_const(key)), norms.data());
    return {beta.data(), norms.data(), sizes.kv_heads};
  }
  void attend(const AttentionMask& mask, const SparsityConfig& config) {
    plan.clear();
    sparse_sheaf_attend<T>(queries(query), keys(key), values(value), score(), mask, config, outputs(output), lse.data(),
                           plan);
  }
  void backward(const AttentionMask& mask) {
    dbeta.assign(static_cast<std::size_t>(sizes.batch * sizes.heads), 0);
    std::fill(dnorms.begin(), dnorms.end(), T(0));
    sparse_sheaf_attend_backward<T>(queries(query), keys(key), values(value), outputs(output), outputs(doutput),
                                    lse.data(), score(), mask, plan, queries(dquery), keys(dkey), values(dvalue),
                                    {dbeta.data(), dnorms.data(), sizes.heads, sizes.kv_heads});
    square_norms_backward<T>(keys(std::as_const(key)), dnorms.data(), keys(dkey));
  }
};

using Visible = std::function<bool(Index b, Index h, Index i, Index j)>;

// One row of the definition, its output in `out`.
template <class T>
void attend_row(Problem<T>& p, Index b, Index h, Index i, const Visible& visible, std::vector<double>& out) {
  const Sizes& s = p.sizes;
  const Index g = h / (s.heads / s.kv_heads);
  std::vector<double> logit(static_cast<std::size_t>(s.tokens), -INFINITY);
  double largest = -INFINITY, sum = 0;
  for (Index j = 0; j < s.tokens; ++j) {
    if (!visible(b, h, i, j)) continue;
    double energy = 0;
    for (Index d = 0; d < s.dim; ++d) {
      const double r =
          static_cast<double>(p.queries(p.query).at(b, h, i)[d]) - static_cast<double>(p.keys(p.key).at(b, g, j)[d]);
      energy += r * r;
    }
    logit[static_cast<std::size_t>(j)] = -static_cast<double>(p.beta[static_cast<std::size_t>(h)]) * energy;
    largest = std::max(largest, logit[static_cast<std::size_t>(j)]);
  }
  out.assign(static_cast<std::size_t>(s.value_dim), 0.0);
  if (std::isinf(largest)) return;
  for (double& l : logit) sum += l = std::exp(l - largest);
  for (Index j = 0; j < s.tokens; ++j)
    for (Index d = 0; d < s.value_dim; ++d)
      out[static_cast<std::size_t>(d)] +=
          logit[static_cast<std::size_t>(j)] / sum * static_cast<double>(p.values(p.value).at(b, g, j)[d]);
}

inline bool everything(Index, Index, Index, Index) { return true; }
inline bool past(Index, Index, Index i, Index j) { return j <= i; }

// What the plan lets rows see, remembered.
template <class T>
Visible seen_by(const Problem<T>& p, const AttentionMask& mask) {
  const Sizes& s = p.sizes;
  std::vector<bool> seen(static_cast<std::size_t>(s.batch * s.heads * s.tokens * s.tokens));
  const OpenChunkMask near{mask, p.plan.chunk};
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.tokens; ++i) {
        const auto at = [=](Index j) {
          return static_cast<std::size_t>(((b * s.heads + h) * s.tokens + i) * s.tokens + j);
        };
        const KeyRange open = near.keys({b, s.tokens, s.tokens, b * s.tokens, b * s.tokens}, h, i);
        for (Index j = open.begin; j < open.end; ++j) seen[at(j)] = true;
        p.plan.for_each_far_key(b, h, b * s.tokens + i, [&](Index j) { seen[at(j)] = true; });
      }
  return [s, seen](Index b, Index h, Index i, Index j) {
    return static_cast<bool>(seen[static_cast<std::size_t>(((b * s.heads + h) * s.tokens + i) * s.tokens + j)]);
  };
}

// How far the rows are from the dense definition, in units of max‖v‖ over the values they could see; `each(b, h, i,
// distance)`.
template <class T, class Each>
void compare_with_dense(Problem<T>& p, const Visible& visible, Each&& each) {
  const Sizes& s = p.sizes;
  std::vector<double> dense;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.tokens; ++i) {
        attend_row(p, b, h, i, visible, dense);
        double largest = 0, distance = 0;
        for (Index j = 0; j < s.tokens; ++j) {
          double norm = 0;
          for (Index d = 0; d < s.value_dim; ++d) {
            const auto v = static_cast<double>(p.values(p.value).at(b, h / (s.heads / s.kv_heads), j)[d]);
            norm += v * v;
          }
          if (visible(b, h, i, j)) largest = std::max(largest, std::sqrt(norm));
        }
        for (Index d = 0; d < s.value_dim; ++d) {
          const double r = static_cast<double>(p.outputs(p.output).at(b, h, i)[d]) - dense[static_cast<std::size_t>(d)];
          distance += r * r;
        }
        each(b, h, i, std::sqrt(distance) / largest);
      }
}

inline Index pick(Rng& rng, Index low, Index high) {
  return low + static_cast<Index>(rng.below(static_cast<std::uint64_t>(high - low + 1)));
}
// 10^uniform
inline double magnitude(Rng& rng, double low, double high) { return std::pow(10.0, rng.uniform(low, high)); }

// Any shape, any blocks, any closeness.
inline Sizes random_sizes(Rng& rng) {
  Sizes s;
  s.batch = pick(rng, 1, 2);
  s.kv_heads = pick(rng, 1, 2);
  s.heads = s.kv_heads * pick(rng, 1, 2);
  s.tokens = pick(rng, 1, 70);
  s.dim = pick(rng, 1, 20);
  s.value_dim = pick(rng, 1, 6);
  return s;
}
inline SparsityConfig random_config(Rng& rng) {
  SparsityConfig config;
  config.epsilon = magnitude(rng, -4, -0.2);
  config.block = pick(rng, 1, 20);
  config.chunk = pick(rng, 1, 24);
  config.clusters = pick(rng, 1, 12);
  return config;
}
template <class T>
Problem<T> random_problem(Rng& rng, double largest_offset) {
  const Sizes sizes = random_sizes(rng);
  const double offset = pick(rng, 0, 2) == 0 ? largest_offset : 0;
  return Problem<T>(sizes, rng, pick(rng, 1, 9), rng.uniform(0, 9), offset, magnitude(rng, -1.5, 1));
}

}  // namespace sparse

// A row of the result does not depend on its company: whichever other queries are computed beside it, one or all, and
// whatever keys come later, its bits are the same. Routing needs that: a later token that is routed or not must not
// move an earlier one.
#include "rbar/attention/engine.hpp"
#include "rbar/core/random.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <vector>

using namespace rbar;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

template <class T>
struct Rows {
  std::vector<T> output, log_sum_exp;
  friend bool operator==(const Rows&, const Rows&) = default;
};

// Two sequences of `tokens`, and subsets of their queries.
template <class T>
struct Company {
  static constexpr Index batch = 2;
  static constexpr DotProductScore score{0.4};
  Index tokens, heads, kv_heads, dim, value_dim, window;
  std::vector<T> query, key, value;

  explicit Company(Rng& rng) {
    const auto below = [&](int n) { return static_cast<Index>(rng.uniform() * n); };
    tokens = 1 + below(170);
    kv_heads = 1 + below(3);
    heads = kv_heads * (1 + below(3));
    dim = 1 + below(40);
    value_dim = 1 + below(40);
    if (below(6) == 0) dim = 129 + below(128);  // narrower tiles
    window = below(3) == 0 ? 1 + below(50) : 0;
    for (auto [values, size] : {std::pair{&query, heads * dim}, {&key, kv_heads * dim}, {&value, kv_heads * value_dim}})
      for (Index i = 0; i < batch * tokens * size; ++i) values->push_back(static_cast<T>(rng.normal()));
  }

  template <class Mask>
  Rows<T> attend_rows(HeadsView<const T> queries, HeadsView<const T> keys, HeadsView<const T> values, const Mask& mask,
                      Index count) const {
    Rows<T> rows{std::vector<T>(at(count * heads * value_dim)), std::vector<T>(at(count * heads))};
    HeadsView<T> output = ragged_heads_view(rows.output.data(), queries.batch, queries.row_offsets, heads, value_dim);
    if (!queries.row_offsets) output = heads_view(rows.output.data(), queries.batch, queries.tokens, heads, value_dim);
    attend<T>(queries, keys, values, score, mask, output, rows.log_sum_exp.data());
    return rows;
  }
  auto view(const std::vector<T>& rows, Index n_heads, Index n_dim) const {
    return heads_view(rows.data(), batch, tokens, n_heads, n_dim);
  }
  Rows<T> all() const {
    const auto run = [&](const auto& mask) {
      return attend_rows(view(query, heads, dim), view(key, kv_heads, dim), view(value, kv_heads, value_dim), mask,
                         batch * tokens);
    };
    return window > 0 ? run(WindowMask{window}) : run(CausalMask{});
  }
  // The queries at rows `chosen`, on the first `keys` keys of every sequence or on the chosen ones themselves.
  Rows<T> subset(const std::vector<Index>& chosen, Index keys, bool routed_keys) const {
    std::vector<Index> offsets = {0, 0, static_cast<Index>(chosen.size())}, positions;
    for (const Index row : chosen) {
      positions.push_back(row % tokens);
      if (row < tokens) ++offsets[1];
    }
    const auto packed = [&](const std::vector<T>& rows, Index width) {
      std::vector<T> copy;
      for (const Index row : chosen) copy.insert(copy.end(), &rows[at(row * width)], &rows[at(row * width)] + width);
      return copy;
    };
    const auto queries = packed(query, heads * dim), chosen_keys = packed(key, kv_heads * dim),
               chosen_values = packed(value, kv_heads * value_dim);
    const auto ragged = [&](const std::vector<T>& rows, Index n_heads, Index n_dim) {
      return ragged_heads_view(rows.data(), batch, offsets.data(), n_heads, n_dim);
    };
    auto key_view = view(key, kv_heads, dim), value_view = view(value, kv_heads, value_dim);
    for (auto* rows : {&key_view, &value_view}) {
      rows->sequence_stride = tokens * rows->token_stride;
      rows->tokens = keys;
    }
    if (routed_keys) key_view = ragged(chosen_keys, kv_heads, dim);
    if (routed_keys) value_view = ragged(chosen_values, kv_heads, value_dim);
    const PositionMask mask{positions.data(), routed_keys ? positions.data() : nullptr, window};
    return attend_rows(ragged(queries, heads, dim), key_view, value_view, mask, static_cast<Index>(chosen.size()));
  }
  // Rows `chosen` of a result whose rows are `present`.
  Rows<T> pick(const Rows<T>& rows, const std::vector<Index>& present, const std::vector<Index>& chosen) const {
    Rows<T> picked;
    for (const Index row : chosen) {
      const Index i = std::find(present.begin(), present.end(), row) - present.begin();
      const auto append = [&](auto& to, const auto& from, Index width) {
        to.insert(to.end(), &from[at(i * width)], &from[at(i * width)] + width);
      };
      append(picked.output, rows.output, heads * value_dim);
      append(picked.log_sum_exp, rows.log_sum_exp, heads);
    }
    return picked;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a row has the same bits in any company", "[engine]", float, double) {
  Rng rng(11);
  for (int trial = 0; trial < 60; ++trial) {
    const Company<TestType> company(rng);
    INFO("trial " << trial << ", tokens " << company.tokens << ", heads " << company.heads << " on " << company.kv_heads
                  << ", dim " << company.dim << " and " << company.value_dim << ", window " << company.window);
    const double share = trial % 3 == 0 ? 0.05 : 0.6;
    std::vector<Index> everyone, chosen, earlier;
    const Index cut = static_cast<Index>(rng.uniform() * static_cast<double>(company.tokens));
    for (Index row = 0; row < 2 * company.tokens; ++row) {
      everyone.push_back(row);
      if (rng.uniform() >= share) continue;
      chosen.push_back(row);
      if (row % company.tokens <= cut) earlier.push_back(row);
    }
    const auto dense = company.all();
    const auto subset = company.subset(chosen, company.tokens, false);
    CHECK(subset == company.pick(dense, everyone, chosen));
    CHECK(company.subset(earlier, cut + 1, false) == company.pick(subset, chosen, earlier));
    CHECK(company.subset(earlier, 0, true) == company.pick(company.subset(chosen, 0, true), chosen, earlier));
  }
}

TEST_CASE("a decoding step has the bits of the full pass", "[engine]") {
  Rng rng(12);
  for (int trial = 0; trial < 20; ++trial) {
    const Company<float> company(rng);
    const auto dense = company.all();
    for (Index t = 0; t < company.tokens; t += 1 + company.tokens / 7) {
      std::vector<Index> rows = {t};
      auto query = company.view(company.query, company.heads, company.dim);
      auto key = company.view(company.key, company.kv_heads, company.dim);
      auto value = company.view(company.value, company.kv_heads, company.value_dim);
      query.batch = key.batch = value.batch = 1;
      query.data += t * query.token_stride;
      query.tokens = 1;
      key.tokens = value.tokens = t + 1;
      std::vector<Index> everyone(at(t + 1));
      for (Index i = 0; i <= t; ++i) everyone[at(i)] = i;
      const auto step = company.window > 0 ? company.attend_rows(query, key, value, WindowMask{company.window, t}, 1)
                                           : company.attend_rows(query, key, value, CausalMask{t}, 1);
      CHECK(step == company.pick(dense, everyone, rows));
    }
  }
}

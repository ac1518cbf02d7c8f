// Sheaf attention with routed queries and in streams: the numbers of the full pass.
#include "rbar/audit/gradient_check.hpp"
#include "sheaf/naive_sheaf.hpp"
#include "support/differences.hpp"

using namespace rbar;
using naive::random_hidden;
using naive::random_sheaf;

namespace {

// A random subset: about `share` of the tokens, but none of sequence 1.
struct Subset {
  std::vector<Index> rows, offsets;
  std::vector<bool> chosen;

  Subset(Index batch, Index tokens, double share, std::uint64_t seed) : offsets{0} {
    Rng rng(seed);
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < tokens; ++t) {
        chosen.push_back(b != 1 && rng.uniform() < share);
        if (chosen.back()) rows.push_back(b * tokens + t);
      }
      offsets.push_back(static_cast<Index>(rows.size()));
    }
  }
  RoutedRows routed() const { return {rows.data(), offsets.data(), static_cast<Index>(offsets.size()) - 1}; }
};

// Tokens [first, first + count) of every sequence.
Tensor<double, 3> part_of(const Tensor<double, 3>& x, Index first, Index count) {
  Tensor<double, 3> part(x.dimension(0), count, x.dimension(2));
  for (Index b = 0; b < x.dimension(0); ++b) std::copy_n(&x(b, first, 0), count * x.dimension(2), &part(b, 0, 0));
  return part;
}

}  // namespace

TEST_CASE("routed sheaf attention follows the definition, with every kind of keys", "[sheaf attention]") {
  std::uint64_t seed = 1;
  for (const auto& config : naive::sheaf_configs())
    for (const KeyValues key_values : all_key_values) {
      INFO(naive::describe(config) << ", keys " << name_of(key_values) << ", seed " << ++seed);
      const Index batch = 3, tokens = 17;
      const auto layer = random_sheaf<double>(config, seed);
      const auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
      SheafAttention<double>::Cache cache;
      for (const double share : {0.4, 0.0, 1.0}) {  // one cache for all: its buffers must not remember
        const Subset subset(batch, tokens, share, seed);
        const auto expected = naive::sheaf_attention(layer, x, [&](Index row) {
          return key_values == KeyValues::all || subset.chosen[static_cast<std::size_t>(row)];
        });
        Tensor<double, 2> y(static_cast<Index>(subset.rows.size()), config.d_model);
        layer.forward_routed(x, subset.routed(), key_values, rows(y), cache);
        double error = 0;
        for (Index s = 0; s < y.dimension(0); ++s)
          for (Index d = 0; d < config.d_model; ++d) {
            const Index row = subset.rows[static_cast<std::size_t>(s)];
            error = test::larger(error, std::abs(y(s, d) - expected.data()[row * config.d_model + d]));
          }
        CHECK(error <= 1e-11);
      }
    }
}

TEST_CASE("routed sheaf attention: gradients, added to what dx holds", "[sheaf attention]") {
  std::uint64_t seed = 30;
  for (const auto& config : naive::sheaf_configs())
    for (const KeyValues key_values : all_key_values) {
      INFO(naive::describe(config) << ", keys " << name_of(key_values) << ", seed " << ++seed);
      const Index batch = 3, tokens = 11;
      auto layer = random_sheaf<double>(config, seed);
      auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
      const Subset subset(batch, tokens, 0.5, seed);
      const RoutedRows routed = subset.routed();
      Tensor<double, 2> y(routed.count(), config.d_model), dy = y;
      Rng rng(seed);
      normal(dy, 1.0, rng);
      SheafAttention<double>::Cache cache;
      layer.forward_routed(x, routed, key_values, rows(y), cache);
      auto grad = zeros_like(layer);
      Tensor<double, 3> dx = x;
      dx.setConstant(0.25);
      layer.backward_routed(rows(std::as_const(dy)), x, routed, key_values, cache, dx, grad);
      for (double& value : elements(dx)) value -= 0.25;

      std::vector<GradientPair> pairs = {{"x", elements(x), elements(std::as_const(dx))}};
      const auto values = parameters_of(layer), gradients = parameters_of(grad);
      for (std::size_t i = 0; i < values.size(); ++i)
        pairs.push_back({values[i].name, values[i].values(), gradients[i].values()});
      const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
        layer.forward_routed(x, routed, key_values, rows(y), cache);
        double loss = 0;
        for (Index i = 0; i < y.size(); ++i) loss += y.data()[i] * dy.data()[i];
        return loss;
      });
      INFO(report.worst);
      CHECK(report.error < 1e-6);
      CHECK(report.largest_gradient > 0.1);
    }
}

TEST_CASE("streaming sheaf attention gives the numbers of the full pass", "[sheaf attention]") {
  std::uint64_t seed = 20;
  for (const auto& config : naive::sheaf_configs()) {
    if (!config.causal) continue;
    const Index batch = 2, tokens = 150;  // the cache starts with room for 64
    const auto layer = random_sheaf<double>(config, ++seed);
    const auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
    const Tensor<double, 3> full = layer(x);
    for (const Index chunk : {1, 7, 150}) {
      INFO(naive::describe(config) << ", chunk " << chunk << ", seed " << seed);
      SheafAttention<double>::State state;
      Tensor<double, 3> y;
      double error = 0;
      for (Index first = 0; first < tokens; first += chunk) {
        const Index count = std::min(chunk, tokens - first);
        layer.step(part_of(x, first, count), y, state);
        error = test::larger(error, naive::largest_difference(y, part_of(full, first, count)));
      }
      CHECK(error < 1e-12);
      CHECK(state.position == tokens);
    }
  }
}

TEST_CASE("a sheaf stream in which only routed tokens ask", "[sheaf attention]") {
  std::uint64_t seed = 60;
  for (const KeyValues key_values : all_key_values) {
    const auto config = naive::sheaf_configs()[2];
    const Index batch = 3, tokens = 90, chunk = 8;
    const auto layer = random_sheaf<double>(config, ++seed);
    const auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
    const Subset subset(batch, tokens, 0.6, seed);
    Tensor<double, 2> full(subset.routed().count(), config.d_model);
    SheafAttention<double>::Cache cache;
    layer.forward_routed(x, subset.routed(), key_values, rows(full), cache);
    SheafAttention<double>::State state;
    double error = 0;
    for (Index first = 0; first < tokens; first += chunk) {
      const Index count = std::min(chunk, tokens - first);
      std::vector<Index> part_rows, part_offsets = {0}, full_rows;
      for (Index b = 0; b < batch; ++b) {
        for (Index s = subset.offsets[static_cast<std::size_t>(b)]; s < subset.offsets[static_cast<std::size_t>(b) + 1];
             ++s) {
          const Index t = subset.rows[static_cast<std::size_t>(s)] - b * tokens;
          if (t < first || t >= first + count) continue;
          part_rows.push_back(b * count + t - first);
          full_rows.push_back(s);
        }
        part_offsets.push_back(static_cast<Index>(part_rows.size()));
      }
      Tensor<double, 2> y(static_cast<Index>(part_rows.size()), config.d_model);
      layer.step_routed(part_of(x, first, count), {part_rows.data(), part_offsets.data(), batch}, key_values, rows(y),
                        state);
      for (std::size_t s = 0; s < full_rows.size(); ++s)
        for (Index d = 0; d < config.d_model; ++d)
          error = test::larger(error, std::abs(y(static_cast<Index>(s), d) - full(full_rows[s], d)));
    }
    INFO("keys " << name_of(key_values) << ", seed " << seed);
    CHECK(error < 1e-12);
  }
}

TEST_CASE("keys may come late and in pieces, queries when they are asked", "[sheaf attention]") {
  std::uint64_t seed = 80;
  for (const auto& config : naive::sheaf_configs()) {
    if (!config.causal) continue;
    INFO(naive::describe(config) << ", seed " << ++seed);
    const Index batch = 2, tokens = 100, dim = config.d_model;
    const auto layer = random_sheaf<float>(config, seed);
    const auto x = random_hidden<float>(batch, tokens, dim, seed);
    const Tensor<float, 3> full = layer(x);
    SheafAttention<float>::State state;
    state.keys.limit = tokens;  // which a sequence that lags behind does not exceed by filling up
    layer.open(batch, state);
    Rng rng(seed);
    Index filled[2] = {0, 0};
    float error = 0;
    bool asked = false;
    for (int turn = 0; turn < 80; ++turn) {
      for (Index b = 0; b < batch; ++b) {
        const Index count = std::min<Index>(tokens - filled[b], static_cast<Index>(rng.below(4)));
        layer.append_keys(ConstMatrixView<float>(&x(b, 0, 0) + filled[b] * dim, count, dim), b, filled[b], state);
        filled[b] += count;
      }
      // One query of sequence 0 anywhere in the past, none or one of sequence 1.
      std::vector<Index> positions, offsets = {0};
      std::vector<float> hidden;
      for (Index b = 0; b < batch; ++b) {
        if (filled[b] > 0 && (b == 0 || turn % 2 == 0)) {
          positions.push_back(static_cast<Index>(rng.below(static_cast<std::uint64_t>(filled[b]))));
          hidden.insert(hidden.end(), &x(b, positions.back(), 0), &x(b, positions.back(), 0) + dim);
        }
        offsets.push_back(static_cast<Index>(positions.size()));
      }
      const Index count = static_cast<Index>(positions.size());
      std::vector<float> y(hidden.size());
      layer.attend_cached(ConstMatrixView<float>(hidden.data(), count, dim), {nullptr, offsets.data(), batch},
                          positions.data(), MatrixView<float>(y.data(), count, dim), state);
      for (Index b = 0; b < batch; ++b)
        for (Index s = offsets[static_cast<std::size_t>(b)]; s < offsets[static_cast<std::size_t>(b) + 1]; ++s)
          for (Index d = 0; d < dim; ++d) {
            const float expected = full(b, positions[static_cast<std::size_t>(s)], d);
            error = test::larger(error, std::abs(y[static_cast<std::size_t>(s * dim + d)] - expected));
            asked = true;
          }
    }
    CHECK(asked);
    CHECK(error == 0);  // whatever company rows come in, their bits are their own
  }
}

TEST_CASE("what a stream in pieces refuses", "[sheaf attention]") {
  const auto config = naive::sheaf_configs()[0];
  const auto layer = random_sheaf<float>(config, 1);
  const auto x = random_hidden<float>(1, 6, config.d_model, 2);
  const auto rows_of = [&](Index first, Index count) {
    return ConstMatrixView<float>(&x(0, first, 0), count, config.d_model);
  };
  SheafAttention<float>::State state;
  CHECK_THROWS_AS(layer.append_keys(rows_of(0, 2), 0, 0, state), Error);  // how many sequences are there?
  layer.open(2, state);
  CHECK_THROWS_AS(layer.append_keys(rows_of(0, 2), 2, 0, state), Error);
  CHECK_THROWS_AS(layer.append_keys(rows_of(0, 2), 0, -1, state), Error);
  layer.append_keys(rows_of(0, 2), 0, 0, state);
  CHECK_THROWS_AS(layer.append_keys(rows_of(1, 2), 0, 1, state), Error);  // position 1 is there already
  const Index offsets[] = {0, 1, 1}, positions[] = {1};
  Tensor<float, 2> y(1, config.d_model), wrong(2, config.d_model);
  const ConstMatrixView<float> query = rows_of(1, 1);
  CHECK_NOTHROW(layer.attend_cached(query, {nullptr, offsets, 2}, positions, rows(y), state));
  CHECK_THROWS_AS(layer.attend_cached(query, {nullptr, offsets, 1}, positions, rows(y), state), Error);
  CHECK_THROWS_AS(layer.attend_cached(query, {nullptr, offsets, 2}, positions, rows(wrong), state), Error);
}

#include "attention/naive_multi_head.hpp"
#include "rbar/attention/sparse_attention.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "support/differences.hpp"

using namespace rbar;
using naive::random_hidden;
using naive::random_layer;

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

}  // namespace

TEST_CASE("routed attention follows the definition, with every kind of keys") {
  std::uint64_t seed = 1;
  for (const auto& config : naive::multi_head_configs())
    for (const KeyValues key_values : all_key_values) {
      INFO(naive::describe(config) << ", keys " << name_of(key_values) << ", seed " << ++seed);
      const Index batch = 3, tokens = 17;
      const auto layer = random_layer<double>(config, seed);
      const auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
      MultiHeadAttention<double>::Cache cache;
      for (const double share : {0.4, 0.0, 1.0}) {  // one cache for all: its buffers must not remember
        const Subset subset(batch, tokens, share, seed);
        const auto expected = naive::multi_head_attention(layer, x, [&](Index row) {
          return key_values == KeyValues::all || subset.chosen[static_cast<std::size_t>(row)];
        });
        Tensor<double, 2> y(static_cast<Index>(subset.rows.size()), config.d_model);
        layer.forward_routed(x, subset.routed(), key_values, rows(y), cache);
        for (Index s = 0; s < y.dimension(0); ++s)
          for (Index d = 0; d < config.d_model; ++d)
            REQUIRE(
                y(s, d) ==
                Approx(expected.data()[subset.rows[static_cast<std::size_t>(s)] * config.d_model + d]).margin(1e-11));
      }
    }
}

TEST_CASE("routed attention: gradients, added to what dx holds") {
  std::uint64_t seed = 30;
  for (const auto& config : naive::multi_head_configs())
    for (const KeyValues key_values : all_key_values) {
      INFO(naive::describe(config) << ", keys " << name_of(key_values) << ", seed " << ++seed);
      const Index batch = 3, tokens = 11;
      auto layer = random_layer<double>(config, seed);
      auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
      const Subset subset(batch, tokens, 0.5, seed);
      const RoutedRows routed = subset.routed();
      Tensor<double, 2> y(routed.count(), config.d_model), dy = y;
      Rng rng(seed);
      normal(dy, 1.0, rng);
      MultiHeadAttention<double>::Cache cache;
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

TEST_CASE("routed streaming gives the numbers of the routed pass") {
  std::uint64_t seed = 60;
  for (const auto& config : naive::multi_head_configs()) {
    if (!config.causal) continue;
    for (const KeyValues key_values : all_key_values) {
      const Index batch = 3, tokens = 90;
      const auto layer = random_layer<double>(config, ++seed);
      const auto x = random_hidden<double>(batch, tokens, config.d_model, seed);
      const Subset subset(batch, tokens, 0.6, seed);
      Tensor<double, 2> full(subset.routed().count(), config.d_model);
      MultiHeadAttention<double>::Cache cache;
      layer.forward_routed(x, subset.routed(), key_values, rows(full), cache);
      for (const Index chunk : {1, 8}) {
        INFO(naive::describe(config) << ", keys " << name_of(key_values) << ", chunk " << chunk << ", seed " << seed);
        MultiHeadAttention<double>::State state;
        double error = 0;
        for (Index first = 0; first < tokens; first += chunk) {
          const Index count = std::min(chunk, tokens - first);
          Tensor<double, 3> part(batch, count, config.d_model);
          std::vector<Index> part_rows, part_offsets = {0}, full_rows;
          for (Index b = 0; b < batch; ++b) {
            std::copy_n(&x(b, first, 0), count * config.d_model, &part(b, 0, 0));
            for (Index s = subset.offsets[static_cast<std::size_t>(b)];
                 s < subset.offsets[static_cast<std::size_t>(b) + 1]; ++s) {
              const Index t = subset.rows[static_cast<std::size_t>(s)] - b * tokens;
              if (t < first || t >= first + count) continue;
              part_rows.push_back(b * count + t - first);
              full_rows.push_back(s);
            }
            part_offsets.push_back(static_cast<Index>(part_rows.size()));
          }
          Tensor<double, 2> y(static_cast<Index>(part_rows.size()), config.d_model);
          layer.step_routed(part, {part_rows.data(), part_offsets.data(), batch}, key_values, rows(y), state);
          for (std::size_t s = 0; s < full_rows.size(); ++s)
            for (Index d = 0; d < config.d_model; ++d)
              error = test::larger(error, std::abs(y(static_cast<Index>(s), d) - full(full_rows[s], d)));
        }
        CHECK(error < 1e-12);
      }
    }
  }
}

TEST_CASE("SparseAttention is attention among the selected tokens, in a shorter sequence") {
  auto config = naive::multi_head_configs()[0];  // no positions: the subset is a sequence of its own
  Rng rng(5);
  SparseAttention<double> sparse(config, rng);
  const auto x = random_hidden<double>(1, 13, config.d_model, 6);
  const std::vector<Index> chosen = {1, 2, 7, 12}, offsets = {0, 4};
  Tensor<double, 2> y(4, config.d_model);
  SparseAttention<double>::Cache cache;
  sparse.forward(x, {chosen.data(), offsets.data(), 1}, rows(y), cache);
  Tensor<double, 3> packed(1, 4, config.d_model);
  for (Index s = 0; s < 4; ++s)
    std::copy_n(&x(0, chosen[static_cast<std::size_t>(s)], 0), config.d_model, &packed(0, s, 0));
  const Tensor<double, 3> expected = sparse.attention(packed);
  for (Index i = 0; i < y.size(); ++i) CHECK(y.data()[i] == Approx(expected.data()[i]).margin(1e-12));
  CHECK(count_parameters(sparse) == count_parameters(sparse.attention));
}

TEST_CASE("routed rows must ascend inside their sequences") {
  const auto config = naive::multi_head_configs()[0];
  const auto layer = random_layer<float>(config, 1);
  const auto x = random_hidden<float>(2, 5, config.d_model, 1);
  MultiHeadAttention<float>::Cache cache;
  Tensor<float, 2> y(2, config.d_model);
  const auto run = [&](std::vector<Index> chosen, std::vector<Index> offsets) {
    layer.forward_routed(x, {chosen.data(), offsets.data(), static_cast<Index>(offsets.size()) - 1}, KeyValues::all,
                         rows(y), cache);
  };
  CHECK_NOTHROW(run({1, 7}, {0, 1, 2}));
  CHECK_THROWS_AS(run({7, 1}, {0, 1, 2}), Error);
  CHECK_THROWS_AS(run({3, 3}, {0, 2, 2}), Error);
  CHECK_THROWS_AS(run({3, 10}, {0, 1, 2}), Error);
  CHECK_THROWS_AS(run({3, 4}, {0, 2}), Error);  // one sequence instead of two
  CHECK_THROWS_AS(run({3}, {0, 1, 1}), Error);  // y has two rows
}

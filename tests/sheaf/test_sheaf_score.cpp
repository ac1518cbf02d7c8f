// The scores of sheaf attention on the engine, and sheaf attention with a weight for every edge, against their
// definitions pair by pair.
#include "attention/naive_attention.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "sheaf/naive_sheaf.hpp"

using namespace rbar;
using naive::Problem;
using naive::Sizes;
using Doubles = std::vector<double>;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

Doubles random(Index size, std::uint64_t seed, double low, double high) {
  Rng rng(seed);
  Doubles values(at(size));
  for (double& value : values) value = rng.uniform(low, high);
  return values;
}

const Sizes sizes_of_test[] = {{2, 37, 41, 4, 2, 9, 6}, {1, 70, 80, 2, 2, 16, 16}, {2, 2, 30, 3, 1, 8, 8}};
bool may_see(Index, Index, Index i, Index j) { return j <= i + 3; }

// ∂L/∂β from the sums of β ∂L/∂β [batch][heads].
Doubles beta_gradient(const Doubles& sums, const Doubles& beta) {
  Doubles total(beta.size(), 0.0);
  for (std::size_t i = 0; i < sums.size(); ++i) total[i % beta.size()] += sums[i] / beta[i % beta.size()];
  return total;
}

// Forward against the definition, then every gradient against its differences.
template <class Score, class Gradient>
void check(Problem<double>& p, const Score& score, Gradient gradient, const naive::Logit& logit, auto&& own_gradients) {
  Problem<double> expected(p);
  naive::attend(expected, logit, may_see);
  p.attend(score, CausalMask{3});
  CHECK(naive::difference(p.output, expected.output) <= 1e-12);
  CHECK(naive::difference(p.lse, expected.lse) <= 1e-12);
  p.backward(score, CausalMask{3}, gradient);
  std::vector<GradientPair> pairs = {
      {"query", p.query, p.dquery}, {"key", p.key, p.dkey}, {"value", p.value, p.dvalue}};
  own_gradients(pairs);
  const auto report = gradient_check(pairs, [&] { return naive::loss(p, logit, may_see); }, {.samples_per_tensor = 25});
  INFO(report.worst);
  CHECK(report.error <= 1e-6);
}

}  // namespace

TEST_CASE("the sheaf score: the squared norms of the keys are numbers of their own", "[sheaf score]") {
  for (const Sizes& s : sizes_of_test) {
    Problem<double> p(s);
    Doubles beta = random(s.heads, 2, 0.1, 0.5), norms = random(s.batch * s.keys * s.kv_heads, 3, 0, 9);
    Doubles dlog_beta(at(s.batch * s.heads)), dnorms(norms.size()), dbeta;
    const naive::Logit logit = [&](Index b, Index h, Index, Index j, double dot) {
      const Index g = h / (s.heads / s.kv_heads);
      return beta[at(h)] * (2 * dot - norms[at((b * s.keys + j) * s.kv_heads + g)]);
    };
    check(p, SheafScore<double>{beta.data(), norms.data(), s.kv_heads},
          SheafScoreGradient<double>{dlog_beta.data(), dnorms.data(), s.heads, s.kv_heads}, logit, [&](auto& pairs) {
            dbeta = beta_gradient(dlog_beta, beta);
            pairs.push_back({"beta", beta, dbeta});
            pairs.push_back({"key_square_norm", norms, dnorms});
          });
  }
}

TEST_CASE("the sheaf score of weighted edges: nothing cancels, and every weight has a gradient", "[sheaf score]") {
  for (Sizes s : sizes_of_test) {
    s.queries = s.keys;  // weights are of tokens with themselves
    Problem<double> p(s);
    Doubles beta = random(s.heads, 2, 0.1, 0.5), weight = random(s.batch * s.keys * s.keys, 3, 0, 2);
    // Far larger than any dot product, so that no energy is negative and clamped.
    Doubles query_norms = random(s.batch * s.queries * s.heads, 4, 40, 50);
    Doubles key_norms = random(s.batch * s.keys * s.kv_heads, 5, 40, 50);
    Doubles dlog_beta(at(s.batch * s.heads)), dquery_norms(query_norms.size()), dkey_norms(key_norms.size());
    Doubles partial(at(s.batch * s.kv_heads * s.keys * s.keys)), dbeta, dweight(weight.size());
    const EdgeWeights<double> edges{weight.data(), s.keys, s.keys * s.keys};
    const naive::Logit logit = [&](Index b, Index h, Index i, Index j, double dot) {
      const Index g = h / (s.heads / s.kv_heads);
      const double energy = query_norms[at((b * s.queries + i) * s.heads + h)] +
                            key_norms[at((b * s.keys + j) * s.kv_heads + g)] - 2 * dot;
      return -beta[at(h)] * weight[at((b * s.keys + i) * s.keys + j)] * energy;
    };
    check(p, SheafEdgeScore<double>{beta.data(), query_norms.data(), key_norms.data(), s.heads, s.kv_heads, edges},
          SheafEdgeGradient<double>{dlog_beta.data(), dquery_norms.data(), dkey_norms.data(), partial.data(), s.heads,
                                    s.kv_heads, s.keys},
          logit, [&](auto& pairs) {
            const Index square = s.keys * s.keys;
            for (std::size_t i = 0; i < partial.size(); ++i)
              dweight[i / at(s.kv_heads * square) * at(square) + i % at(square)] += partial[i];
            dbeta = beta_gradient(dlog_beta, beta);
            pairs.push_back({"beta", beta, dbeta});
            pairs.push_back({"query_square_norm", query_norms, dquery_norms});
            pairs.push_back({"key_square_norm", key_norms, dkey_norms});
            pairs.push_back({"weight", weight, dweight});
          });
  }
}

TEST_CASE("sheaf attention with a weight for every edge follows its definition", "[sheaf attention]") {
  std::uint64_t seed = 1;
  for (const auto& config : naive::sheaf_configs())
    for (const bool shared : {false, true}) {
      INFO(naive::describe(config) << (shared ? ", shared weights" : "") << ", seed " << ++seed);
      const Index batch = 2, tokens = 13;
      auto layer = naive::random_sheaf<double>(config, seed);
      auto x = naive::random_hidden<double>(batch, tokens, config.d_model, seed);
      auto weight = naive::random_hidden<double>(shared ? 1 : batch, tokens, tokens, seed);
      for (double& w : elements(weight)) w = w * w + 0.01;  // 0.01: a difference must not reach below 0
      Tensor<double, 3> y, dx, dweight;
      SheafAttention<double>::Cache cache;
      layer.forward_weighted(x, weight, y, cache);
      const auto expected = naive::sheaf_attention(
          layer, x, [](Index) { return true; },
          [&](Index b, Index i, Index j) { return weight(shared ? 0 : b, i, j); });
      CHECK(naive::largest_difference(y, expected) <= 1e-11);

      const auto dy = naive::random_hidden<double>(batch, tokens, config.d_model, seed + 100);
      auto grad = zeros_like(layer);
      layer.backward_weighted(dy, weight, cache, dx, dweight, grad);
      std::vector<GradientPair> pairs = {{"x", elements(x), elements(std::as_const(dx))},
                                         {"edge_weight", elements(weight), elements(std::as_const(dweight))}};
      const auto values = parameters_of(layer), gradients = parameters_of(grad);
      for (std::size_t i = 0; i < values.size(); ++i)
        pairs.push_back({values[i].name, values[i].values(), gradients[i].values()});
      const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
        layer.forward_weighted(x, weight, y, cache);
        double loss = 0;
        for (Index i = 0; i < y.size(); ++i) loss += y.data()[i] * dy.data()[i];
        return loss;
      });
      INFO(report.worst);
      CHECK(report.error < 1e-6);
    }
}

TEST_CASE("edges of weight 1 change nothing, and weights that mean nothing are refused", "[sheaf attention]") {
  const auto config = naive::sheaf_configs()[3];
  const auto layer = naive::random_sheaf<double>(config, 4);
  const auto x = naive::random_hidden<double>(2, 40, config.d_model, 5);
  auto weight = zeros<double, 3>({1, 40, 40});
  weight.setConstant(1);
  Tensor<double, 3> y;
  SheafAttention<double>::Cache cache;
  layer.forward_weighted(x, weight, y, cache);
  CHECK(naive::largest_difference(y, layer(x)) <= 1e-13);

  weight(0, 3, 2) = -1;
  CHECK_THROWS_AS(layer.forward_weighted(x, weight, y, cache), Error);
  weight(0, 3, 2) = NAN;
  CHECK_THROWS_AS(layer.forward_weighted(x, weight, y, cache), Error);
  CHECK_THROWS_AS(layer.forward_weighted(x, zeros<double, 3>({3, 40, 40}), y, cache), Error);
  CHECK_THROWS_AS(layer.forward_weighted(x, zeros<double, 3>({1, 40, 39}), y, cache), Error);
  weight.setConstant(1);
  auto poisoned = layer;  // queries that are no numbers do not pass for agreement
  parameters_of(poisoned)[0].data[0] = NAN;
  poisoned.forward_weighted(x, weight, y, cache);
  CHECK(std::isnan(y(0, 3, 0)));
  cache.score.sparsity.emplace().enabled = true;
  CHECK_THROWS_WITH(layer.forward_weighted(x, weight, y, cache), ContainsText("sparsity.enabled"));
}

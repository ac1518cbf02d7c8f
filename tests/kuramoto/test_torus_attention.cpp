#include "kuramoto/naive_oscillators.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/kuramoto/torus_attention.hpp"
#include "support/allocation_count.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"
#include "support/passes.hpp"

#include <vector>

using namespace rbar;

namespace {

struct Variant {
  TorusGate gate = TorusGate::query;
  bool strict = false, drift = true;
};
const Variant variants[] = {{},
                            {TorusGate::fixed},
                            {TorusGate::query_key},
                            {TorusGate::query, true},
                            {TorusGate::query_key, true, false},
                            {TorusGate::fixed, false, false}};

KuramotoAttentionConfig config_of(const Variant& variant, Index heads, Index dim) {
  KuramotoAttentionConfig config;
  config.d_model = heads * dim;
  config.n_heads = heads;
  config.gate = variant.gate;
  config.strict = variant.strict;
  config.drift = variant.drift;
  return config;
}

// Parameters off their initial values, or half of the formula would not show.
template <class T>
KuramotoAttention<T> random_layer(const KuramotoAttentionConfig& config, Rng& rng) {
  KuramotoAttention<T> layer(config, rng);
  for (const auto& parameter : parameters_of(layer))
    for (Index i = 0; i < parameter.size; ++i) parameter.data[i] += static_cast<T>(rng.normal(0, 0.3));
  return layer;
}

// softmax weights of query t over the keys it may see, by the definition; empty if it sees none.
std::vector<double> weights(const KuramotoAttention<double>& layer, const Tensor<double, 3>& angles, Index b, Index t,
                            Index h) {
  const auto& config = layer.config;
  const Index dim = config.head_dim();
  const auto gate_of = [&](const Linear<double>& map, Index at, Index i) {
    double sum = map.bias(h * dim + i);
    for (Index g = 0; g < config.n_heads; ++g)
      for (Index k = 0; k < dim; ++k) {
        const double angle = angles(b, at, g * dim + k);
        sum += map.weight(h * dim + i, 2 * g * dim + k) * std::cos(angle);
        sum += map.weight(h * dim + i, (2 * g + 1) * dim + k) * std::sin(angle);
      }
    return sum;
  };
  const auto drifted = [&](Index at, Index i) {
    const double omega = std::pow(config.drift_base, -static_cast<double>(i) / static_cast<double>(dim));
    return angles(b, at, h * dim + i) + (config.drift ? omega * static_cast<double>(at) : 0.0);
  };
  std::vector<double> logits;
  for (Index u = 0; u < t + (config.strict ? 0 : 1); ++u) {
    double score = 0;
    for (Index i = 0; i < dim; ++i) {
      const double a = config.gate == TorusGate::fixed ? layer.fixed_gate(h, i) : gate_of(layer.query_gate_map, t, i);
      const double other = config.gate == TorusGate::query_key ? gate_of(layer.key_gate_map, u, i) : 1.0;
      score += a * other * std::cos(drifted(t, i) - drifted(u, i));
    }
    logits.push_back(layer.beta(h) * score);
  }
  double largest = -1e300, sum = 0;
  for (const double logit : logits) largest = std::max(largest, logit);
  for (double& logit : logits) sum += logit = std::exp(logit - largest);
  for (double& logit : logits) logit /= sum;
  return logits;
}

Tensor<double, 3> plain(const KuramotoAttention<double>& layer, const Tensor<double, 3>& angles) {
  const Index dim = layer.config.head_dim();
  Tensor<double, 3> moved = angles;
  for (Index b = 0; b < angles.dimension(0); ++b)
    for (Index t = 0; t < angles.dimension(1); ++t)
      for (Index h = 0; h < layer.config.n_heads; ++h) {
        const auto weight = weights(layer, angles, b, t, h);
        for (Index i = h * dim; i < (h + 1) * dim; ++i) {
          double pull = 0;
          for (std::size_t u = 0; u < weight.size(); ++u)
            pull += weight[u] * std::sin(angles(b, static_cast<Index>(u), i) - angles(b, t, i));
          moved(b, t, i) += 2 / (1 + std::exp(-layer.rate_logit(i))) * pull;
        }
      }
  return moved;
}

}  // namespace

TEST_CASE("torus attention moves by the sum of sines") {
  Rng rng(1);
  for (const Variant& variant : variants)
    for (const auto& [heads, dim, tokens] : {std::tuple<Index, Index, Index>{2, 5, 9}, {1, 1, 3}, {3, 17, 21}}) {
      const auto layer = random_layer<double>(config_of(variant, heads, dim), rng);
      const auto angles = naive::random_angles<double>(2, tokens, heads * dim, rng);
      const auto moved = layer(angles), expected = plain(layer, angles);
      INFO(name_of(variant.gate) << " strict " << variant.strict << " drift " << variant.drift << " tokens " << tokens);
      double worst = 0;
      for (Index i = 0; i < moved.size(); ++i)
        worst = test::larger(worst, std::abs(moved.data()[i] - expected.data()[i]));
      CHECK(worst <= 1e-12);
    }
}

TEST_CASE("torus attention's gradients") {
  Rng rng(2);
  for (const Variant& variant : variants) {
    const auto layer = random_layer<double>(config_of(variant, 2, 3), rng);
    const auto report = gradient_check(layer, view(naive::random_angles<double>(2, 7, 6, rng)));
    INFO(name_of(variant.gate) << " strict " << variant.strict << " drift " << variant.drift << ": " << report.worst);
    CHECK(report.error <= 1e-6);
  }
}

TEST_CASE("one angle that moves alone never disagrees more with what it attends to") {
  Rng rng(3);
  for (int round = 0; round < 40; ++round) {
    auto layer = random_layer<double>(config_of(variants[round % 6], 2, 4), rng);
    for (double& logit : elements(layer.rate_logit)) logit = rng.uniform(-4, 4);  // η over most of (0, 2)
    const auto angles = naive::random_angles<double>(1, 8, 8, rng);
    const auto moved = layer(angles);
    for (Index t = 0; t < 8; ++t)
      for (Index h = 0; h < 2; ++h) {
        const auto weight = weights(layer, angles, 0, t, h);
        for (Index i = h * 4; i < (h + 1) * 4; ++i) {
          // A fixed, the others held; its own copy among the keys is held too.
          const auto disagreement = [&](double angle) {
            double sum = 0;
            for (std::size_t u = 0; u < weight.size(); ++u)
              sum -= weight[u] * std::cos(angles(0, static_cast<Index>(u), i) - angle);
            return sum;
          };
          INFO("round " << round << " token " << t << " angle " << i);
          CHECK(disagreement(moved(0, t, i)) <= disagreement(angles(0, t, i)) + 1e-12);
        }
      }
  }
}

namespace {

// −Σ_t Σ_u A_tu cos(θ_u − θ_t).
double disagreement(const Tensor<double, 2>& weight, const std::vector<double>& angles) {
  double sum = 0;
  for (std::size_t t = 0; t < angles.size(); ++t)
    for (std::size_t u = 0; u < angles.size(); ++u)
      sum -= weight(static_cast<Index>(t), static_cast<Index>(u)) * std::cos(angles[u] - angles[t]);
  return sum;
}

// All tokens of one coordinate moved at once by the layer's step, A given.
std::vector<double> all_moved(const Tensor<double, 2>& weight, const std::vector<double>& angles, double rate) {
  std::vector<double> moved(angles.size());
  for (std::size_t t = 0; t < angles.size(); ++t) {
    double mean[2] = {}, phasor[2], angle = angles[t];
    for (std::size_t u = 0; u < angles.size(); ++u) {
      mean[0] += weight(static_cast<Index>(t), static_cast<Index>(u)) * std::cos(angles[u]);
      mean[1] += weight(static_cast<Index>(t), static_cast<Index>(u)) * std::sin(angles[u]);
    }
    simd::torus_phasors(&angle, /*heads=*/1, /*dim=*/1, phasor);
    simd::torus_step(&angle, phasor, mean, &rate, /*heads=*/1, /*dim=*/1, &moved[t]);
  }
  return moved;
}

}  // namespace

TEST_CASE("angles that move all at once may disagree more afterwards, but not for symmetric weights and η ≤ 1") {
  // Two tokens that look at each other alone, nearly in phase: each goes past the other.
  Tensor<double, 2> mutual(2, 2);
  mutual(0, 1) = mutual(1, 0) = 1;
  mutual(0, 0) = mutual(1, 1) = 0;
  const std::vector<double> close = {0.0, 0.2};
  CHECK(disagreement(mutual, all_moved(mutual, close, 1.9)) > disagreement(mutual, close) + 1e-3);
  CHECK(disagreement(mutual, all_moved(mutual, close, 1.0)) <= disagreement(mutual, close));
  double worst = -1;  // of weights that are not symmetric
  Rng rng(14);
  for (int round = 0; round < 2000; ++round) {
    const Index tokens = 2 + static_cast<Index>(rng.below(6));
    const double rate = rng.uniform(0, 1);
    std::vector<double> angles;
    for (Index t = 0; t < tokens; ++t) angles.push_back(rng.uniform(-3.1, 3.1));
    Tensor<double, 2> any(tokens, tokens), symmetric(tokens, tokens);
    for (Index t = 0; t < tokens; ++t)
      for (Index u = 0; u <= t; ++u) symmetric(t, u) = symmetric(u, t) = rng.below(2) == 0 ? 0.0 : rng.uniform();
    double largest_row = 0;
    for (Index t = 0; t < tokens; ++t) {
      double symmetric_row = 0, any_row = 0;
      for (Index u = 0; u < tokens; ++u) {
        any_row += any(t, u) = std::pow(rng.uniform(), 8);
        symmetric_row += symmetric(t, u);
      }
      for (Index u = 0; u < tokens; ++u) any(t, u) /= any_row;
      largest_row = std::max(largest_row, symmetric_row);
    }
    for (double& weight : elements(symmetric)) weight /= std::max(1.0, largest_row);  // rows of at most 1
    INFO("round " << round << " tokens " << tokens << " rate " << rate);
    CHECK(disagreement(symmetric, all_moved(symmetric, angles, rate)) <= disagreement(symmetric, angles) + 1e-12);
    worst = test::larger(worst, disagreement(any, all_moved(any, angles, rate)) - disagreement(any, angles));
  }
  CHECK(worst > 1e-3);  // there even η ≤ 1 may raise it
}

TEST_CASE("turning every angle turns the result: with a fixed gate the weights see differences only") {
  Rng rng(4);
  const auto layer = random_layer<double>(config_of({TorusGate::fixed}, 2, 5), rng);
  auto angles = naive::random_angles<double>(1, 9, 10, rng);
  const auto before = layer(angles);
  for (double& angle : elements(angles)) angle += 0.7;
  const auto after = layer(angles);
  for (Index i = 0; i < after.size(); ++i) CHECK(after.data()[i] == Approx(before.data()[i] + 0.7).margin(1e-12));
}

TEST_CASE("torus attention streams, and sees no future, for any number of threads") {
  Rng rng(5);
  for (const Variant& variant : variants) {
    const auto config = config_of(variant, 3, 16);
    const auto layer = random_layer<float>(config, rng);
    auto angles = naive::random_angles<float>(2, 20, config.d_model, rng);
    const auto whole = layer(angles);
    KuramotoAttention<float>::State state;
    Index done = 0;
    for (const Index count : {1, 7, 1, 11}) {
      Tensor<float, 3> part(2, count, config.d_model), moved;
      for (Index b = 0; b < 2; ++b) std::copy_n(&angles(b, done, 0), count * config.d_model, &part(b, 0, 0));
      layer.step(part, moved, state);
      for (Index b = 0; b < 2; ++b)
        for (Index i = 0; i < count * config.d_model; ++i)
          REQUIRE((&moved(b, 0, 0))[i] == Approx((&whole(b, done, 0))[i]).margin(1e-5));
      done += count;
    }
    INFO(name_of(variant.gate) << " strict " << variant.strict << " drift " << variant.drift);
    CHECK(test::same_for_any_threads(layer, naive::random_angles<float>(3, 90, config.d_model, rng)));
    angles(0, 12, 3) += 1;
    const auto changed = layer(angles);
    for (Index i = 0; i < 12 * config.d_model; ++i) REQUIRE(changed.data()[i] == whole.data()[i]);
  }
}

TEST_CASE("a second pass of torus attention allocates nothing") {
  Rng rng(6);
  const auto angles = naive::random_angles<float>(2, 9, 16, rng);
  for (const Variant& variant : {variants[0], variants[1], variants[2]}) {
    const auto layer = random_layer<float>(config_of(variant, 2, 8), rng);
    Tensor<float, 3> moved, dangles;
    KuramotoAttention<float>::Cache cache;
    auto grad = zeros_like(layer);
    const auto pass = [&] {
      layer.forward(angles, moved, cache);
      layer.backward(angles, cache, dangles, grad);
    };
    CHECK((test::allocations_in(pass) > 0 || !test::counts_allocations));
    CHECK(test::allocations_in(pass) == 0);
    CHECK((cache.dkey_gate.size() > 0) == (variant.gate == TorusGate::query_key));  // nor what is not used
  }
}

TEST_CASE("torus attention refuses what it cannot compute") {
  Rng rng(7);
  TorusGate gate{};
  CHECK((parse("static", gate) && gate == TorusGate::fixed));
  CHECK_FALSE(parse("fixed", gate));
  const KuramotoAttention<float> layer(config_of({}, 2, 3), rng);
  Tensor<float, 3> moved;
  KuramotoAttention<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(zeros<float, 3>({1, 2, 5}), moved, cache), ContainsText("angles"));
  layer.forward(zeros<float, 3>({1, 2, 6}), moved, cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_WITH(layer.backward(zeros<float, 3>({1, 3, 6}), cache, moved, grad), ContainsText("dmoved"));
  KuramotoAttention<float>::State state;
  state.keys.limit = 1;
  CHECK_THROWS_AS(layer.step(zeros<float, 3>({1, 2, 6}), moved, state), Error);
  KuramotoAttention<float>::State stream;
  layer.step(zeros<float, 3>({3, 0, 6}), moved, stream);  // nothing yet: the batch is not settled
  CHECK(shape_of(moved) == Shape<3>{3, 0, 6});
  layer.step(zeros<float, 3>({2, 1, 6}), moved, stream);
  layer.step(zeros<float, 3>({2, 0, 6}), moved, stream);
  CHECK(stream.position == 1);
  CHECK_THROWS_WITH(layer.step(zeros<float, 3>({3, 1, 6}), moved, stream), ContainsText("sequences"));
  for (const auto spoil :
       {+[](KuramotoAttentionConfig& c) { c.n_heads = 0; }, +[](KuramotoAttentionConfig& c) { c.d_model = 7; },
        +[](KuramotoAttentionConfig& c) { c.d_model = 258; }, +[](KuramotoAttentionConfig& c) { c.drift_base = 0; }}) {
    auto bad = config_of({}, 2, 3);
    spoil(bad);
    CHECK_THROWS_AS(KuramotoAttention<float>(bad, rng), Error);
  }
}

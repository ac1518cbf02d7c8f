#include "kuramoto/naive_oscillators.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/kuramoto/hybrid_attention.hpp"
#include "support/catch.hpp"
#include "support/passes.hpp"

using namespace rbar;

namespace {

HybridAttentionConfig small_config(double share) {
  HybridAttentionConfig config;
  config.attention.d_model = config.phase.d_model = 6;
  config.attention.n_heads = 2;
  config.phase.kuramoto.n_heads = 2;
  config.phase.kuramoto.n_oscillators = 3;
  config.phase.kuramoto.n_steps = 3;
  config.phase_share = share;
  return config;
}

}  // namespace

TEST_CASE("hybrid attention is a blend of its two parts, with their gradients") {
  Rng rng(1);
  for (const double share : {0.0, 0.3, 1.0}) {
    const HybridAttention<double> layer(small_config(share), rng);
    const auto x = naive::random_angles<double>(2, 7, 6, rng, 2.0);
    const auto y = layer(x), attended = layer.attention(x), synchronised = layer.phase(x);
    for (Index i = 0; i < y.size(); ++i)
      REQUIRE(y.data()[i] == Approx((1 - share) * attended.data()[i] + share * synchronised.data()[i]).margin(1e-14));
    const auto report = gradient_check(layer, view(x));
    INFO("share " << share << ": " << report.worst);
    CHECK(report.error <= 1e-6);
  }
}

TEST_CASE("the regulariser of hybrid attention's phases is part of its loss") {
  Rng rng(5);
  auto config = small_config(0.4);
  config.phase.regularizer = {CoherenceTarget::center, 0.1, 3.0};
  const HybridAttention<double> layer(config, rng);
  const auto x = naive::random_angles<double>(2, 5, 6, rng, 2.0);
  HybridAttention<double>::Cache cache;
  Tensor<double, 3> y;
  layer.forward(x, y, cache);
  CHECK(auxiliary_loss_of(cache) > 0.01);
  const auto report = gradient_check(layer, view(x));
  INFO(report.worst);
  CHECK(report.error <= 1e-6);
  CHECK(test::same_for_any_threads(layer, naive::random_angles<double>(3, 150, 6, rng, 2.0)));
}

TEST_CASE("hybrid attention streams the numbers of the full pass") {
  Rng rng(2);
  const HybridAttention<float> layer(small_config(0.5), rng);
  const auto x = naive::random_angles<float>(2, 12, 6, rng, 2.0);
  const auto whole = layer(x);
  HybridAttention<float>::State state;
  Index done = 0;
  for (const Index count : {1, 5, 6}) {
    Tensor<float, 3> part(2, count, 6), y;
    for (Index b = 0; b < 2; ++b) std::copy_n(&x(b, done, 0), count * 6, &part(b, 0, 0));
    layer.step(part, y, state);
    for (Index b = 0; b < 2; ++b)
      for (Index i = 0; i < count * 6; ++i) REQUIRE((&y(b, 0, 0))[i] == Approx((&whole(b, done, 0))[i]).margin(1e-5));
    done += count;
  }
}

TEST_CASE("hybrid attention refuses parts that do not fit") {
  Rng rng(3);
  auto config = small_config(0.5);
  config.phase.d_model = 8;
  CHECK_THROWS_WITH(HybridAttention<float>(config, rng), ContainsText("phase.d_model"));
  CHECK_THROWS_WITH(HybridAttention<float>(small_config(1.5), rng), ContainsText("phase_share"));
  const HybridAttention<float> layer(small_config(0.5), rng);
  Tensor<float, 3> y;
  HybridAttention<float>::Cache cache;
  layer.forward(zeros<float, 3>({1, 2, 6}), y, cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_WITH(layer.backward(zeros<float, 3>({1, 3, 6}), cache, y, grad), ContainsText("dy"));
  HybridAttention<float>::State state;
  layer.step(zeros<float, 3>({2, 1, 6}), y, state);
  CHECK_THROWS_AS(layer.step(zeros<float, 3>({1, 1, 6}), y, state), Error);
}

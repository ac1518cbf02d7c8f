#include "nn/support.hpp"
#include "rbar/nn/mixture_of_experts.hpp"
#include "support/allocations.hpp"

#include <numeric>

using namespace rbar;
using namespace rbar::test;

namespace {

MixtureOfExpertsConfig small(Index n_experts, Index top_k, double balance_weight = 0.5) {
  return {.d_model = 7, .d_ff = 11, .n_experts = n_experts, .top_k = top_k, .balance_weight = balance_weight};
}

template <class T>
MixtureOfExperts<T> random_mixture(const MixtureOfExpertsConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  return perturbed(MixtureOfExperts<T>(config, rng), seed + 1);
}

// The formula, token by token. Returns the auxiliary loss.
double textbook(const MixtureOfExperts<double>& layer, const Tensor<double, 2>& x, Tensor<double, 2>& y) {
  const auto [dim, hidden, n_experts, top_k, bias, balance_weight, activation] = layer.config;
  const Index count = x.dimension(0);
  std::vector<double> chosen_share(static_cast<std::size_t>(n_experts)), mean(static_cast<std::size_t>(n_experts));
  for (Index n = 0; n < count; ++n) {
    const Eigen::VectorXd row = rows(x).row(n).transpose();
    Eigen::VectorXd p = (rows(layer.gate.weight) * row).array().exp();
    p /= p.sum();
    std::vector<Index> order(static_cast<std::size_t>(n_experts));
    std::iota(order.begin(), order.end(), Index{0});
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return p[a] > p[b]; });
    double total = 0;
    for (std::size_t j = 0; j < static_cast<std::size_t>(top_k); ++j) total += p[order[j]];
    Eigen::VectorXd sum = Eigen::VectorXd::Zero(dim);
    for (std::size_t j = 0; j < static_cast<std::size_t>(top_k); ++j) {
      const auto& expert = layer.experts[static_cast<std::size_t>(order[j])];
      Tensor<double, 2> one(1, dim), out(1, dim);
      rows(one).row(0) = row.transpose();
      FeedForward<double>::Cache cache;
      expert.forward(rows(std::as_const(one)), rows(out), cache);
      sum += p[order[j]] / (top_k == 1 ? 1 : total) * rows(out).row(0).transpose();
      chosen_share[static_cast<std::size_t>(order[j])] += 1 / static_cast<double>(count * top_k);
    }
    rows(y).row(n) = sum.transpose();
    for (std::size_t e = 0; e < mean.size(); ++e) mean[e] += p[static_cast<Index>(e)] / static_cast<double>(count);
  }
  return balance_weight * static_cast<double>(n_experts) *
         std::inner_product(mean.begin(), mean.end(), chosen_share.begin(), 0.0);
}

}  // namespace

TEST_CASE("a mixture of experts is its formula") {
  Rng shapes(1);
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    MixtureOfExpertsConfig config;
    config.d_model = 1 + static_cast<Index>(shapes.below(20));
    config.d_ff = 1 + static_cast<Index>(shapes.below(20));
    config.n_experts = 1 + static_cast<Index>(shapes.below(7));
    config.top_k = 1 + static_cast<Index>(shapes.below(static_cast<std::uint64_t>(config.n_experts)));
    config.bias = seed % 2 == 0;
    config.activation = all_activations[seed % 4];
    const Index count = static_cast<Index>(shapes.below(40));
    INFO("seed " << seed << ", rows " << count << ", experts " << config.n_experts << ", k " << config.top_k);
    const auto layer = random_mixture<double>(config, seed);
    const auto x = random_matrix<double>(count, config.d_model, seed + 2);
    Tensor<double, 2> y(count, config.d_model), expected(count, config.d_model);
    MixtureOfExperts<double>::Cache cache;
    layer.forward(rows(x), rows(y), cache);
    const double auxiliary_loss = textbook(layer, x, expected);
    CHECK(largest_difference(y, expected) < 1e-12);
    CHECK(cache.auxiliary_loss == Approx(auxiliary_loss).margin(1e-14));
    Index load = 0;
    for (Index e = 0; e < config.n_experts; ++e) load += cache.load(e);
    CHECK(load == count * config.top_k);  // nobody is dropped
  }
}

TEST_CASE("mixture of experts: gradients, with those of the balance loss") {
  for (const auto& [n_experts, top_k] : {std::pair<Index, Index>{4, 2}, {4, 1}, {3, 3}, {1, 1}, {9, 4}}) {
    INFO("experts " << n_experts << ", k " << top_k);
    check_gradients(random_mixture<double>(small(n_experts, top_k), 3), 13, 7, 7, 40);
    check_gradients(random_mixture<double>(small(n_experts, top_k), 4), 1, 7, 7, 50);
  }
}

TEST_CASE("a row's bits do not depend on the other rows, nor on the threads") {
  const MixtureOfExpertsConfig config{.d_model = 33, .d_ff = 70, .n_experts = 5, .top_k = 2};
  const auto layer = random_mixture<float>(config, 5);
  const Index count = 201;
  const auto x = random_matrix<float>(count, config.d_model, 6);
  Tensor<float, 2> y(count, config.d_model), alone(count, config.d_model);
  MixtureOfExperts<float>::Cache cache;
  layer.forward(rows(x), rows(y), cache);
  for (Index n = 0; n < count; ++n)
    layer.forward(ConstMatrixView<float>(&x(n, 0), 1, config.d_model), MatrixView<float>(&alone(n, 0), 1, 33), cache);
  CHECK(largest_difference(y, alone) == 0);
  check_threads(layer, 301, config.d_model, config.d_model);
}

TEST_CASE("one expert is a feed-forward block, and equal logits prefer lower numbers") {
  Rng rng(7);
  const auto x = random_matrix<float>(10, 7, 8);
  Tensor<float, 2> y(10, 7), expected(10, 7);
  const auto single = random_mixture<float>(small(1, 1), 9);
  MixtureOfExperts<float>::Cache cache;
  FeedForward<float>::Cache expert_cache;
  single.forward(rows(x), rows(y), cache);
  single.experts[0].forward(rows(x), rows(expected), expert_cache);
  CHECK(largest_difference(y, expected) == 0);

  auto tied = random_mixture<float>(small(5, 2), 10);
  tied.gate.weight.setZero();
  tied.forward(rows(x), rows(y), cache);
  for (std::size_t i = 0; i < cache.chosen.size(); ++i) CHECK(cache.chosen[i] == static_cast<Index>(i % 2));
  for (Index n = 0; n < 10; ++n) CHECK(cache.weight(n, 0) == 0.5f);
}

TEST_CASE("the balance loss says how evenly the experts bear") {
  auto layer = random_mixture<double>(small(4, 1, 0.3), 11);
  layer.gate.weight.setZero();
  Tensor<double, 2> x(8, 7), y(8, 7);
  x.setZero();
  for (Index n = 0; n < 8; ++n) x(n, n % 4) = 1;
  MixtureOfExperts<double>::Cache cache;
  for (Index e = 0; e < 4; ++e) layer.gate.weight(e, e) = 50;
  layer.forward(rows(std::as_const(x)), rows(y), cache);
  CHECK(cache.auxiliary_loss == Approx(0.3));
  for (Index e = 0; e < 4; ++e) CHECK(cache.load(e) == 2);
  for (Index n = 0; n < 8; ++n) x(n, 0) = 3;
  layer.forward(rows(std::as_const(x)), rows(y), cache);
  CHECK(cache.auxiliary_loss == Approx(0.3 * 4));
  CHECK(cache.load(0) == 8);
}

TEST_CASE("training on the balance loss alone evens the load out") {
  auto layer = random_mixture<double>(small(4, 2, 1), 12);
  Rng rng(13);
  const auto x = random_matrix<double>(256, 7, 14, /*mean=*/0.5);
  for (Index d = 0; d < 7; ++d) layer.gate.weight(2, d) += 1;  // a favourite
  Tensor<double, 2> y(256, 7), dy(256, 7);
  dy.setZero();
  MixtureOfExperts<double>::Cache cache;
  layer.forward(rows(x), rows(y), cache);
  CHECK(cache.auxiliary_loss > 1.2);
  for (int step = 0; step < 200; ++step) {
    auto grad = zeros_like(layer);
    layer.backward(rows(std::as_const(dy)), rows(x), cache, MatrixView<double>(nullptr, 0, 0), grad);
    for (Index i = 0; i < layer.gate.weight.size(); ++i) layer.gate.weight.data()[i] -= grad.gate.weight.data()[i];
    layer.forward(rows(x), rows(y), cache);
  }
  CHECK(cache.auxiliary_loss < 1.05);
}

TEST_CASE("mixture of experts: no allocation after the first pass, whatever is chosen and however few the rows") {
  const auto layer = random_mixture<float>(small(4, 2), 15);
  MixtureOfExperts<float>::Cache cache;
  auto grad = zeros_like(layer);
  const auto pass = [&](Index count, std::uint64_t seed) {
    const auto x = random_matrix<float>(count, 7, seed), dy = random_matrix<float>(count, 7, seed + 1);
    Tensor<float, 2> y(count, 7), dx(count, 7);
    return ::test::allocations_in([&] {
      layer.forward(rows(x), rows(y), cache);
      layer.backward(rows(dy), rows(x), cache, rows(dx), grad);
    });
  };
  CHECK((pass(50, 1) > 0 || !::test::counts_allocations));
  for (const Index count : {50, 50, 31, 0, 1, 49}) CHECK(pass(count, static_cast<std::uint64_t>(count) + 5) == 0);
}

TEST_CASE("mixture of experts: clear errors") {
  CHECK_THROWS_WITH(small(0, 1).validate(), ContainsText("n_experts"));
  CHECK_THROWS_WITH(small(4, 0).validate(), ContainsText("top_k"));
  CHECK_THROWS_WITH(small(4, 5).validate(), ContainsText("top_k"));
  CHECK_THROWS_WITH(small(4, 1, -1).validate(), ContainsText("balance_weight"));
  Rng rng(1);
  CHECK_THROWS_WITH(MixtureOfExperts<float>({}, rng), ContainsText("d_model"));
  CHECK_THROWS_WITH(MixtureOfExperts<float>({.d_model = 3}, rng), ContainsText("d_ff"));

  const auto layer = random_mixture<float>(small(4, 2), 2);
  auto x = random_matrix<float>(3, 7, 3), wide = random_matrix<float>(3, 8, 3);
  Tensor<float, 2> y(3, 7), few(2, 7);
  MixtureOfExperts<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(rows(std::as_const(wide)), rows(y), cache), ContainsText("x: expected [-1, 7]"));
  CHECK_THROWS_WITH(layer.forward(rows(std::as_const(x)), rows(few), cache), ContainsText("y"));
  layer.forward(rows(std::as_const(x)), rows(y), cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_WITH(layer.backward(rows(std::as_const(few)), rows(std::as_const(x)), cache, rows(y), grad),
                    ContainsText("dy"));
  CHECK_THROWS_WITH(layer.backward(rows(std::as_const(y)), rows(std::as_const(x)), cache, rows(few), grad),
                    ContainsText("dx"));
  x(1, 2) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(layer.forward(rows(std::as_const(x)), rows(y), cache), ContainsText("finite values"));
}

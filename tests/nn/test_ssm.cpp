#include "nn/support.hpp"
#include "rbar/nn/ssm.hpp"
#include "support/allocation_count.hpp"

#include <limits>

using namespace rbar;
using rbar::test::largest_difference;
using rbar::test::perturbed;

namespace {

SelectiveSSMConfig small(Index d_model, Index expand = 2, Index d_state = 5, Index d_conv = 4, Index dt_rank = 0) {
  SelectiveSSMConfig config;
  config.d_model = d_model;
  config.expand = expand;
  config.d_state = d_state;
  config.d_conv = d_conv;
  config.dt_rank = dt_rank;
  return config;
}

template <class T>
SelectiveSSM<T> random_layer(const SelectiveSSMConfig& config, std::uint64_t seed) {
  Rng rng(seed);
  return perturbed(SelectiveSSM<T>(config, rng), seed + 1);
}

template <class T>
Tensor<T, 3> random_input(Index batch, Index tokens, Index features, std::uint64_t seed) {
  Rng rng(seed);
  Tensor<T, 3> x(batch, tokens, features);
  for (T& value : elements(x)) value = static_cast<T>(rng.normal());
  return x;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

// The published recurrence, a scalar at a time.
Tensor<double, 3> plain(const SelectiveSSM<double>& layer, const Tensor<double, 3>& x) {
  const auto& config = layer.config;
  const Index tokens = x.dimension(1), inner = config.inner(), states = config.d_state, rank = config.rank();
  const auto product = [](const Tensor<double, 2>& weight, Index row, const double* values) {
    double sum = 0;
    for (Index i = 0; i < weight.dimension(1); ++i) sum += weight(row, i) * values[i];
    return sum;
  };
  Tensor<double, 3> y(x.dimension(0), tokens, config.d_model);
  for (Index b = 0; b < x.dimension(0); ++b) {
    Tensor<double, 2> before(tokens, inner), h = zeros<double, 2>({inner, states});
    std::vector<double> u(static_cast<std::size_t>(inner)), out(u), choice(static_cast<std::size_t>(rank + 2 * states));
    for (Index t = 0; t < tokens; ++t) {
      for (Index e = 0; e < inner; ++e) {
        before(t, e) = product(layer.in_proj.weight, e, &x(b, t, 0));
        double v = layer.conv_bias(e);
        for (Index k = 0; k < config.d_conv; ++k)
          if (t - (config.d_conv - 1) + k >= 0) v += layer.conv_weight(e, k) * before(t - (config.d_conv - 1) + k, e);
        u[static_cast<std::size_t>(e)] = silu(v);
      }
      for (std::size_t i = 0; i < choice.size(); ++i)
        choice[i] = product(layer.x_proj.weight, static_cast<Index>(i), u.data());
      const double *B = choice.data() + rank, *C = B + states;
      for (Index e = 0; e < inner; ++e) {
        const double in = u[static_cast<std::size_t>(e)], z = product(layer.in_proj.weight, inner + e, &x(b, t, 0));
        const double step =
            std::log1p(std::exp(layer.dt_proj.bias(e) + product(layer.dt_proj.weight, e, choice.data())));
        double sum = layer.D(e) * in;
        for (Index s = 0; s < states; ++s) {
          h(e, s) = std::exp(-step * std::exp(layer.A_log(e, s))) * h(e, s) + step * in * B[s];
          sum += C[s] * h(e, s);
        }
        out[static_cast<std::size_t>(e)] = sum * silu(z);
      }
      for (Index d = 0; d < config.d_model; ++d) y(b, t, d) = product(layer.out_proj.weight, d, out.data());
    }
  }
  return y;
}

}  // namespace

static_assert(StreamingLayer<SelectiveSSM<float>>);

TEST_CASE("the selective SSM is its recurrence") {
  // Widths with and without register tails and with several blocks of channels, states in whole groups and not, chunks
  // that end early.
  for (const auto& [config, tokens] : {std::pair{small(7), Index{11}},
                                       {small(1, 1, 1, 1), 5},
                                       {small(16, 2, 16), 33},
                                       {small(35, 2, 4, 2), 1},
                                       {small(50, 3, 9, 7, 4), 70}}) {
    INFO("d_model " << config.d_model << ", tokens " << tokens);
    const auto layer = random_layer<double>(config, 3);
    const auto x = random_input<double>(2, tokens, config.d_model, 4);
    const auto y = layer(x), expected = plain(layer, x);
    auto single = random_layer<float>(config, 3);
    copy_parameters(layer, single);
    Tensor<float, 3> narrow(2, tokens, config.d_model);
    for (Index i = 0; i < x.size(); ++i) narrow.data()[i] = static_cast<float>(x.data()[i]);
    const auto result = single(narrow);
    double largest = 0, error = 0;
    for (Index i = 0; i < y.size(); ++i) {
      largest = std::max(largest, std::abs(expected.data()[i]));
      error = std::max(error, std::abs(static_cast<double>(result.data()[i]) - expected.data()[i]));
    }
    CHECK(largest_difference(y, expected) < 1e-12 * largest);
    CHECK(error < 1e-5 * largest);
  }
}

TEST_CASE("the selective SSM's gradients") {
  for (const auto& [config, tokens] : {std::pair{small(7), Index{9}},
                                       {small(1, 1, 1, 1), 3},
                                       {small(16, 2, 16), 35},
                                       {small(35, 2, 4, 2), 1},
                                       {small(23, 3, 9, 7, 4), 67}}) {
    const auto layer = random_layer<double>(config, 5);
    const auto report = gradient_check(layer, view(random_input<double>(2, tokens, config.d_model, 6)));
    INFO("d_model " << config.d_model << ", tokens " << tokens << ": " << report.worst);
    CHECK(report.error <= 1e-6);
  }
}

TEST_CASE("a stream of the selective SSM has the bits of the whole sequence") {
  const auto config = small(21, 2, 6);
  const auto layer = random_layer<float>(config, 7);
  const auto x = random_input<float>(3, 75, config.d_model, 8);
  const auto y = layer(x);
  SelectiveSSM<float>::State state;
  Index begin = 0;
  Tensor<float, 3> part;
  for (const Index count : {1, 2, 1, 40, 3, 1, 27}) {
    Tensor<float, 3> next(3, count, config.d_model);
    for (Index b = 0; b < 3; ++b) std::copy_n(&x(b, begin, 0), count * config.d_model, &next(b, 0, 0));
    layer.step(next, part, state);
    for (Index b = 0; b < 3; ++b)
      for (Index i = 0; i < count * config.d_model; ++i) REQUIRE((&part(b, 0, 0))[i] == (&y(b, begin, 0))[i]);
    begin += count;
  }
  CHECK(begin == 75);
}

#include "nn/support.hpp"
#include "rbar/nn/ssm.hpp"
#include "support/allocation_count.hpp"
#include "support/differences.hpp"

#include <cmath>

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
      error = ::test::larger(error, std::abs(static_cast<double>(result.data()[i]) - expected.data()[i]));
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
  const auto x = random_input<float>(3, 75, config.d_model, 8), y = layer(x);
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
}

TEST_CASE("what a stream of the selective SSM keeps does not grow with its prompt") {
  const auto config = small(20);
  const auto layer = random_layer<float>(config, 7);
  for (const Index prompt : {1, 300}) {
    SelectiveSSM<float>::State state, copy;
    Tensor<float, 3> y;
    layer.step(random_input<float>(2, prompt, 20, 8), y, state);
    CHECK(state.history.size() == 2 * 3 * 40);
    CHECK(state.scan.size() == 2 * 5 * simd::scan_channels);
    const auto allocations = ::test::allocations_in([&] { copy = state; });
    CHECK((allocations == 2 || !::test::counts_allocations));  // and nothing else
  }
}

TEST_CASE("the selective SSM: the same bits for every number of threads") {
  const auto config = small(70, 2, 6);
  const auto layer = random_layer<float>(config, 9);
  const auto x = random_input<float>(3, 40, config.d_model, 10), dy = random_input<float>(3, 40, config.d_model, 11);
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    SelectiveSSM<float>::Cache cache;
    Tensor<float, 3> y, dx;
    auto grad = zeros_like(layer);
    layer.forward(x, y, cache);
    layer.backward(dy, cache, dx, grad);
    std::vector<float> all(y.data(), y.data() + y.size());
    all.insert(all.end(), dx.data(), dx.data() + dx.size());
    for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
    if (first.empty()) first = all;
    INFO("threads " << threads);
    CHECK(all == first);
  }
  set_num_threads(1);
}

TEST_CASE("the selective SSM looks neither ahead nor at other sequences") {
  const auto config = small(9, 2, 3);
  const auto layer = random_layer<float>(config, 12);
  auto x = random_input<float>(2, 70, config.d_model, 13);
  const auto before = layer(x);
  for (const Index at : {0, 31, 32, 69}) {
    auto changed = x;
    changed(1, at, 4) += 3;
    const auto after = layer(changed);
    for (Index d = 0; d < config.d_model; ++d) {
      for (Index t = 0; t < 70; ++t) REQUIRE(after(0, t, d) == before(0, t, d));
      for (Index t = 0; t < at; ++t) REQUIRE(after(1, t, d) == before(1, t, d));
      CHECK(after(1, at, d) != before(1, at, d));
    }
    // What the window of the convolution has passed comes through the scan.
    if (at + 4 < 70) CHECK(after(1, at + 4, 0) != before(1, at + 4, 0));
  }
}

TEST_CASE("the selective SSM: gradients accumulate, dx is overwritten, a backward can be repeated") {
  const auto config = small(9, 2, 3);
  const auto layer = random_layer<double>(config, 14);
  const auto x = random_input<double>(2, 35, 9, 15), dy = random_input<double>(2, 35, 9, 16);
  Tensor<double, 3> y, dx, again(2, 35, 9);
  SelectiveSSM<double>::Cache cache;
  layer.forward(x, y, cache);
  auto once = zeros_like(layer), twice = zeros_like(layer);
  layer.backward(dy, cache, dx, once);
  again.setConstant(1e30);
  for (int i = 0; i < 2; ++i) layer.backward(dy, cache, again, twice);
  CHECK(largest_difference(dx, again) == 0);
  const auto expected = parameters_of(once), actual = parameters_of(twice);
  for (std::size_t p = 0; p < expected.size(); ++p)
    for (Index i = 0; i < expected[p].size; ++i)
      CHECK(actual[p].data[i] == Approx(2 * expected[p].data[i]).margin(1e-12));
}

TEST_CASE("the selective SSM allocates nothing after the first pass") {
  const auto config = small(20);
  const auto layer = random_layer<float>(config, 17);
  const auto x = random_input<float>(2, 40, 20, 18), token = random_input<float>(2, 1, 20, 19);
  Tensor<float, 3> y, dx;
  SelectiveSSM<float>::Cache cache;
  SelectiveSSM<float>::State state;
  auto grad = zeros_like(layer);
  const auto pass = [&] {
    return ::test::allocations_in([&] {
      layer.forward(x, y, cache);
      layer.backward(x, cache, dx, grad);
    });
  };
  const auto step = [&] { return ::test::allocations_in([&] { layer.step(token, y, state); }); };
  CHECK((pass() > 0 || !::test::counts_allocations));
  CHECK(pass() == 0);
  step();
  CHECK(step() == 0);
}

TEST_CASE("the selective SSM starts as published") {
  SelectiveSSMConfig config;
  config.d_model = 40;
  Rng rng(20);
  const SelectiveSSM<double> layer(config, rng);
  CHECK(config.rank() == 3);
  CHECK(count_parameters(layer) == 40 * 160 + 80 * 4 + 80 + 35 * 80 + 80 * 3 + 80 + 80 * 16 + 80 + 40 * 80);
  double smallest = 1, largest = 0;
  for (const double bias : elements(layer.dt_proj.bias)) {
    smallest = std::min(smallest, std::log1p(std::exp(bias)));
    largest = std::max(largest, std::log1p(std::exp(bias)));
  }
  CHECK((smallest >= 0.001 && smallest < 0.002 && largest > 0.05 && largest <= 0.1));
  for (const double weight : elements(layer.dt_proj.weight)) CHECK(std::abs(weight) <= 1 / std::sqrt(3.0));
  for (Index s = 0; s < 16; ++s) CHECK(std::exp(layer.A_log(79, s)) == Approx(static_cast<double>(s + 1)));
  CHECK(layer.D(79) == 1);

  std::string decaying;
  for (const auto& p : parameters_of(layer))
    if (SelectiveSSM<double>::decays("layers.0." + p.name, p.shape.size())) decaying += p.name + " ";
  CHECK(decaying == "in_proj.weight conv_weight x_proj.weight dt_proj.weight out_proj.weight ");
}

TEST_CASE("the selective SSM survives extreme step sizes") {
  auto layer = random_layer<float>(small(9, 2, 4), 21);
  const auto x = random_input<float>(1, 50, 9, 22);
  for (const float bias : {-200.0f, -30.0f, 30.0f, 1e4f, 1e30f})
    for (const float log_rate : {-40.0f, 0.0f, 40.0f}) {
      layer.dt_proj.bias.setConstant(bias);
      layer.A_log.setConstant(log_rate);
      layer.out_proj.weight.setConstant(bias > 1e3f ? 1e-30f : 1.0f);  // h itself grows with Δ
      Tensor<float, 3> y, dx;
      SelectiveSSM<float>::Cache cache;
      auto grad = zeros_like(layer);
      layer.forward(x, y, cache);
      INFO("bias " << bias << ", A_log " << log_rate);
      CHECK_NOTHROW(require_finite<float>("test", "y", elements(y)));
      if (bias > 1e5f) continue;
      layer.backward(x, cache, dx, grad);
      CHECK_NOTHROW(require_finite<float>("test", "dx", elements(dx)));
      for (const auto& p : parameters_of(grad)) CHECK_NOTHROW(require_finite<float>("test", p.name, p.values()));
    }
}

TEST_CASE("the selective SSM: clear errors, and nothing to do is no error") {
  const auto refuses = [](auto change, const char* name) {
    SelectiveSSMConfig config = small(8);
    change(config);
    CHECK_THROWS_WITH(config.validate(), ContainsText(name));
  };
  refuses([](auto& c) { c.d_model = 0; }, "d_model");
  refuses([](auto& c) { c.expand = 0; }, "expand");
  refuses([](auto& c) { c.d_state = 0; }, "d_state");
  refuses([](auto& c) { c.d_conv = 0; }, "d_conv");
  refuses([](auto& c) { c.d_conv = 17; }, "d_conv");
  refuses([](auto& c) { c.dt_rank = -1; }, "dt_rank");
  refuses([](auto& c) { c.dt_min = 0; }, "dt_min");
  refuses([](auto& c) { c.dt_max = 1e-4; }, "dt_max");
  refuses([](auto& c) { c.dt_max = HUGE_VAL; }, "dt_max");

  const auto layer = random_layer<float>(small(8), 23);
  Tensor<float, 3> y, dx;
  SelectiveSSM<float>::Cache cache;
  auto grad = zeros_like(layer);
  CHECK_THROWS_WITH(layer.forward(random_input<float>(1, 2, 9, 1), y, cache), ContainsText("[-1, -1, 8]"));
  layer.forward(random_input<float>(1, 3, 8, 1), y, cache);
  CHECK_THROWS_WITH(layer.backward(random_input<float>(1, 2, 8, 1), cache, dx, grad), ContainsText("[1, 3, 8]"));
  SelectiveSSM<float>::State state;
  layer.step(random_input<float>(2, 3, 8, 1), y, state);
  CHECK_THROWS_WITH(layer.step(random_input<float>(3, 1, 8, 1), y, state), ContainsText("batch of x"));
  CHECK_THROWS_WITH(layer.step(random_input<float>(2, 1, 7, 1), y, state), ContainsText("[-1, -1, 8]"));
  for (const auto& [batch, tokens] : {std::pair<Index, Index>{0, 3}, {2, 0}}) {
    layer.forward(Tensor<float, 3>(batch, tokens, 8), y, cache);
    CHECK(y.size() == 0);
    layer.backward(y, cache, dx, grad);
    CHECK(dx.size() == 0);
  }
  for (const auto& p : parameters_of(grad))
    for (const float value : p.values()) CHECK(value == 0);
}

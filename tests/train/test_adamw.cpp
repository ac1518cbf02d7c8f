#include "rbar/train/adamw.hpp"

#include "rbar/train/schedule.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"
#include "support/tiny_language_model.hpp"

#include <limits>

using namespace rbar;
using Model = test::TinyLanguageModel<float>;

namespace {

// Parameters of all kinds of sizes: nothing, one element, tails, several chunks.
template <class T>
struct Bag {
  using Scalar = T;
  Tensor<T, 2> matrix;
  Tensor<T, 1> nothing, one, vector;
  Tensor<T, 3> cube;

  explicit Bag(std::uint64_t seed, double deviation = 1) {
    Rng rng(seed);
    ensure_shape(matrix, {131, 257});
    ensure_shape(nothing, {0});
    ensure_shape(one, {1});
    ensure_shape(vector, {77});
    ensure_shape(cube, {3, 1, 5});
    for (const auto& parameter : parameters_of(*this))
      for (T& value : parameter.values()) value = static_cast<T>(rng.normal(0, deviation));
  }
  void parameters(auto&& visit) {
    visit("one", one);
    visit("nothing", nothing);
    visit("matrix", matrix);
    visit("vector", vector);
    visit("cube", cube);
  }
};

// torch.optim.AdamW line by line, in double, one element at a time.
struct PlainAdamW {
  double m = 0, v = 0;
  int t = 0;
  void step(double& weight, double gradient, double rate, const AdamWConfig& c, bool decayed) {
    ++t;
    if (decayed) weight *= 1 - rate * c.weight_decay;
    m = m * c.beta1 + gradient * (1 - c.beta1);
    v = v * c.beta2 + gradient * gradient * (1 - c.beta2);
    const double step_size = rate / (1 - std::pow(c.beta1, t));
    const double denominator = std::sqrt(v) / std::sqrt(1 - std::pow(c.beta2, t)) + c.epsilon;
    weight -= step_size * m / denominator;
  }
};

template <class T>
void compare_with_plain(WeightDecayGroup group, double tolerance) {
  INFO("decay " << name_of(group));
  AdamWConfig config{.learning_rate = 0.02, .weight_decay = 0.3, .decay = group};
  Bag<T> bag(1);
  AdamW<T> optimizer(config);
  const auto parameters = parameters_of(bag);
  std::vector<std::vector<PlainAdamW>> plain;
  std::vector<std::vector<double>> expected;
  for (const auto& parameter : parameters) {
    plain.emplace_back(parameter.values().size());
    expected.emplace_back(parameter.values().begin(), parameter.values().end());
  }
  for (int step = 0; step < 6; ++step) {
    Bag<T> gradient(10 + static_cast<std::uint64_t>(step), step == 3 ? 1e-6 : 1.0);  // one step where ε counts
    const double scale = 0.5 + 0.25 * step, rate = config.learning_rate / (1 + step);
    const auto gradients = parameters_of(gradient);
    for (std::size_t p = 0; p < parameters.size(); ++p)
      for (std::size_t i = 0; i < expected[p].size(); ++i)
        plain[p][i].step(expected[p][i], static_cast<double>(gradients[p].data[i]) * scale, rate, config,
                         group == WeightDecayGroup::all || parameters[p].shape.size() > 1);
    optimizer.step(FlatParameters<T>(bag), FlatParameters<T>(gradient), rate, scale,
                   step % 2 == 0 ? GradientAfterStep::keep : GradientAfterStep::zero);
    for (const auto& part : gradients)
      if (part.size > 0) CHECK((part.data[part.size - 1] == T(0)) == (step % 2 == 1));
  }
  CHECK(optimizer.steps == 6);
  double error = 0;
  for (std::size_t p = 0; p < parameters.size(); ++p)
    for (std::size_t i = 0; i < expected[p].size(); ++i)
      error = test::larger(error, std::abs(static_cast<double>(parameters[p].data[i]) - expected[p][i]));
  CHECK(error < tolerance);  // weights are of size 1
}

}  // namespace

TEST_CASE("AdamW follows PyTorch's formula") {
  for (const auto group : {WeightDecayGroup::matrices, WeightDecayGroup::all}) {
    compare_with_plain<double>(group, 1e-14);
    compare_with_plain<float>(group, 2e-6);
  }
}

TEST_CASE("a model's own rule says which parameters decay") {
  struct Spared : Bag<double> {
    using Bag::Bag;
    static bool decays(std::string_view name, std::size_t rank) { return name == "vector" || rank == 3; }
  };
  for (const auto group : {WeightDecayGroup::matrices, WeightDecayGroup::all}) {
    Spared bag(1), nothing(2, 0);
    const Spared before = bag;
    AdamW<double> optimizer({.learning_rate = 0.5, .weight_decay = 0.4, .decay = group});
    optimizer.step(bag, nothing);  // without a gradient only the decay moves a weight
    const auto values = parameters_of(bag);
    const auto expected = parameters_of(before);
    for (std::size_t p = 0; p < values.size(); ++p) {
      const bool decays = group == WeightDecayGroup::all || values[p].name == "vector" || values[p].name == "cube";
      INFO(name_of(group) << ": " << values[p].name);
      for (Index i = 0; i < values[p].size; ++i)
        REQUIRE(values[p].data[i] == Approx(expected[p].data[i] * (decays ? 0.8 : 1.0)).epsilon(1e-15));
    }
  }
}

TEST_CASE("AdamW has the same bits for every number of threads") {
  const auto run = [](int threads) {
    set_num_threads(threads);
    Bag<float> bag(3), gradient(4);
    AdamW<float> optimizer(AdamWConfig{});
    for (int i = 0; i < 3; ++i) optimizer.step(bag, gradient);
    const double norm = global_norm(FlatParameters<float>(bag));
    set_num_threads(1);
    return std::pair(bag, norm);
  };
  auto one = run(1), many = run(4);
  CHECK(one.second == many.second);
  CHECK(
      std::equal(one.first.matrix.data(), one.first.matrix.data() + one.first.matrix.size(), many.first.matrix.data()));
}

TEST_CASE("AdamW refuses a gradient or moments of another size, and senseless settings") {
  Bag<float> bag(1);
  Rng rng(1);
  Model model(test::TinyConfig{}, rng);
  AdamW<float> optimizer(AdamWConfig{});
  CHECK_THROWS_AS(optimizer.step(FlatParameters<float>(bag), FlatParameters<float>(model), 0.1), Error);
  CHECK(optimizer.steps == 0);
  optimizer.step(bag, bag);
  CHECK_THROWS_AS(optimizer.step(model, model), Error);
  CHECK(optimizer.steps == 1);
  CHECK_THROWS_WITH(AdamW<float>(AdamWConfig{.beta1 = 1.0}), "AdamWConfig: beta1: expected in [0, 1), got 1");
  CHECK_THROWS_AS(AdamW<float>(AdamWConfig{.learning_rate = std::numeric_limits<double>::quiet_NaN()}), Error);
}

TEST_CASE("the global norm is the norm of all parameters together") {
  Bag<float> bag(5, 2.0);
  double square = 0;
  for (const auto& parameter : parameters_of(bag))
    for (const float value : parameter.values()) square += static_cast<double>(value) * static_cast<double>(value);
  FlatParameters<float> flat(bag);
  CHECK(global_norm(flat) == Approx(std::sqrt(square)).epsilon(1e-13));

  // Squares that float cannot hold.
  bag.matrix(0, 0) = 1e30f;
  CHECK(global_norm(flat) == Approx(1e30));
  bag.cube(2, 0, 4) = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(global_norm(flat)));
  flat.set_zero();
  CHECK(global_norm(flat) == 0);
  CHECK(bag.cube(2, 0, 4) == 0);

  CHECK(clip_factor(0.5, 1.0) == 1.0);
  CHECK(clip_factor(4.0, 1.0) == Approx(0.25));
  CHECK(clip_factor(4.0, 0.0) == 1.0);
}

TEST_CASE("pieces of the flat array cover every element once") {
  Bag<float> bag(1);
  const FlatParameters<float> flat(bag);
  flat.set_zero();
  for (const Index chunk : {1, 2, 3, 50, 76, 77, 78, 1000, 100000}) {
    for (Index begin = 0; begin < flat.size(); begin += chunk)
      flat.for_range(begin, std::min(begin + chunk, flat.size()), [&](std::size_t part, Index first, Index last) {
        for (Index i = first; i < last; ++i) flat.parts()[part].data[i] += 1;
      });
  }
  for (const auto& part : flat.parts())
    CHECK(std::all_of(part.data, part.data + part.size, [](float value) { return value == 9.0f; }));
}

TEST_CASE("the schedule warms up, then holds or falls along a cosine") {
  ScheduleConfig schedule{.schedule = ScheduleKind::cosine, .warmup_steps = 10, .min_ratio = 0.2};
  CHECK(schedule.factor(0, 111) == Approx(0.1));
  CHECK(schedule.factor(9, 111) == 1.0);
  CHECK(schedule.factor(10, 111) == 1.0);
  CHECK(schedule.factor(60, 111) == Approx(0.6));
  CHECK(schedule.factor(110, 111) == Approx(0.2));
  CHECK(schedule.factor(500, 111) == Approx(0.2));
  for (Index step = 10; step < 110; ++step) CHECK(schedule.factor(step + 1, 111) < schedule.factor(step, 111));
  schedule.schedule = ScheduleKind::constant;
  CHECK(schedule.factor(4, 111) == Approx(0.5));
  CHECK(schedule.factor(11, 111) == 1.0);
  CHECK(schedule.factor(110, 111) == 1.0);
  schedule.warmup_steps = 0;
  CHECK(schedule.factor(0, 1) == 1.0);
  // A run shorter than its warm-up, or of one step, has a rate all the same.
  CHECK(ScheduleConfig{.warmup_steps = 100}.factor(4, 5) == Approx(0.05));
  CHECK(ScheduleConfig{.warmup_steps = 0}.factor(0, 1) > 0);
  ScheduleKind kind{};
  CHECK((parse("cosine", kind) && kind == ScheduleKind::cosine));
  CHECK_FALSE(parse("cos", kind));
}

#include "coherence/naive.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

using namespace rbar;

namespace {

struct Sizes {
  Index batch, tokens, features;
};
constexpr Sizes all_sizes[] = {{1, 1, 1},  {2, 1, 5},  {1, 2, 1},   {2, 12, 16},
                               {1, 9, 24}, {3, 7, 33}, {1, 5, 130}, {2, 40, 64}};

}  // namespace

// R̄ in float is a mean over phasors with an error of 6e-7 each.
TEMPLATE_TEST_CASE("coherence of every mode is the textbook formula", "[coherence]", float, double) {
  const double tolerance = std::is_same_v<TestType, float> ? 1e-6 : 1e-13;
  std::uint64_t seed = 11;
  for (const auto [batch, tokens, features] : all_sizes) {
    const auto hidden = naive::random_hidden<TestType>(batch, tokens, features, ++seed);
    for (const auto& config : naive::all_configs({1, 2, 4, 5, 8, 100})) {
      INFO(naive::describe(config) << ", " << batch << "x" << tokens << "x" << features << ", seed " << seed);
      const auto r = compute_coherence(hidden, config);
      REQUIRE(shape_of(r) == Shape<2>{batch, tokens});
      CHECK(naive::largest_difference(r, naive::coherence(hidden, config)) <= tolerance);
    }
  }
}

TEST_CASE("sequence coherence and R̄ of given phases are the textbook formula", "[coherence]") {
  for (const auto [batch, tokens, features] : all_sizes) {
    const auto hidden = naive::random_hidden<float>(batch, tokens, features, 5);
    const auto sequence = compute_sequence_coherence(hidden);
    Tensor<float, 3> phases = hidden;
    for (float& phase : elements(phases)) phase *= 50;  // many turns
    const auto r_bar = r_bar_from_phases(phases);
    for (Index b = 0; b < batch; ++b) {
      naive::Complex total = 0;
      for (Index t = 0; t < tokens; ++t) {
        naive::Complex sum = 0;
        for (Index d = 0; d < features; ++d) {
          total += naive::phasor(static_cast<double>(hidden(b, t, d)));
          sum += std::polar(1.0, static_cast<double>(phases(b, t, d)));
        }
        CHECK(static_cast<double>(r_bar(b, t)) == Approx(std::abs(sum) / static_cast<double>(features)).margin(1e-6));
      }
      CHECK(static_cast<double>(sequence(b)) ==
            Approx(std::abs(total) / static_cast<double>(tokens * features)).margin(1e-6));
    }
  }
}

TEST_CASE("equal phases have R̄ = 1, opposite ones 0, and both a finite gradient", "[coherence]") {
  constexpr Index tokens = 10, features = 34;
  Tensor<double, 3> hidden(1, tokens, features), gradient(1, tokens, features);
  Tensor<double, 2> coherence, ones(1, tokens);
  ones.setConstant(1);
  CoherenceCache<double> cache;
  for (const auto& config : naive::all_configs({1, 4})) {
    INFO(naive::describe(config));
    hidden.setConstant(0.7);
    coherence_forward(hidden, config, coherence, cache);
    const bool cross = config.mode == CoherenceMode::cross;
    for (Index t = 0; t < tokens; ++t)
      if (!cross || config.causality == Causality::causal)
        CHECK(coherence(0, t) == Approx(cross && t == 0 ? 0.0 : 1.0).margin(1e-14));
    gradient.setZero();
    coherence_backward(ones, hidden, config, cache, gradient);
    for (const double g : elements(gradient)) CHECK(std::abs(g) <= 1e-12);

    // Phases 0 and π: x = −∞ and x = 0. Half of the features each, so that every token cancels.
    for (Index t = 0; t < tokens; ++t)
      for (Index d = 0; d < features; ++d) hidden(0, t, d) = d % 2 ? -1000.0 : 0.0;
    coherence_forward(hidden, config, coherence, cache);
    if (config.mode == CoherenceMode::token) CHECK(std::abs(coherence(0, 3)) <= 1e-15);
    gradient.setZero();
    coherence_backward(ones, hidden, config, cache, gradient);
    for (const double g : elements(gradient)) CHECK(std::isfinite(g));
  }
  // Exactly 0: no direction, no derivative.
  Tensor<double, 2> phases(1, 2), dphases(1, 2);
  phases.setValues({{0.0, std::numbers::pi}});
  dphases.setZero();
  CHECK(r_bar_from_phases(phases)(0) <= 1e-16);
  Tensor<double, 1> one(1);
  one.setConstant(1);
  r_bar_from_phases_backward<double, 2>(one, phases, dphases);
  for (const double g : elements(dphases)) CHECK(std::isfinite(g));
}

TEST_CASE("coherence keeps its accuracy over 65,536 tokens", "[coherence]") {
  // Drifting phases and a long stretch of constants: what makes a float prefix sum lose three digits.
  constexpr Index tokens = 65536;
  Tensor<float, 3> hidden(1, tokens, 2);
  Rng rng(3);
  for (Index t = 0; t < tokens; ++t) {
    hidden(0, t, 0) = t < 50000 ? 1.5f : static_cast<float>(rng.normal());
    hidden(0, t, 1) = static_cast<float>(rng.normal());
  }
  for (const Index window : {3, 512, 65536}) {
    const auto r = compute_local_coherence(hidden, window);
    naive::Complex sum[2] = {};
    double worst = 0;
    for (Index t = 0; t < tokens; ++t) {
      double expected = 0;
      for (Index d = 0; d < 2; ++d) {
        sum[d] += naive::phasor(static_cast<double>(hidden(0, t, d)));
        if (t >= window) sum[d] -= naive::phasor(static_cast<double>(hidden(0, t - window, d)));
        expected += 0.5 * std::abs(sum[d]) / static_cast<double>(std::min(t + 1, window));
      }
      worst = test::larger(worst, std::abs(expected - static_cast<double>(r(0, t))));
    }
    INFO("window " << window);
    CHECK(worst <= 1e-6);
  }
}

TEST_CASE("a NaN stays in the coherences that see it", "[coherence]") {
  constexpr Index tokens = 40, features = 70, broken = 11, window = 5;
  const auto whole = naive::random_hidden<float>(1, tokens, features, 21);
  for (const Index at : {0, 69}) {
    auto hidden = whole;
    hidden(0, broken, at) = std::numeric_limits<float>::quiet_NaN();
    for (auto config : naive::all_configs({window})) {
      if (config.mode == CoherenceMode::cross) continue;
      INFO(naive::describe(config) << ", feature " << at);
      const auto r = compute_coherence(hidden, config), expected = compute_coherence(whole, config);
      const Index ahead = config.causality == Causality::reference ? window - 1 - (window - 1) / 2 : 0;
      for (Index t = 0; t < tokens; ++t) {
        const bool sees =
            config.mode == CoherenceMode::token ? t == broken : t + ahead >= broken && t + ahead - window < broken;
        CHECK((sees ? std::isnan(r(0, t)) : r(0, t) == expected(0, t)));
      }
    }
  }
}

TEST_CASE("a later token never changes a causal coherence", "[coherence]") {
  constexpr Index tokens = 23, features = 70, changed = 13;
  const auto hidden = naive::random_hidden<float>(2, tokens, features, 8);
  auto other = hidden;
  for (Index d = 0; d < features; ++d) other(1, changed, d) += 1;
  for (const auto& config : naive::all_configs({5})) {
    const auto before = compute_coherence(hidden, config), after = compute_coherence(other, config);
    bool earlier_differs = false, changed_differs = false;
    for (Index t = 0; t < tokens; ++t) {
      if (t < changed) earlier_differs = earlier_differs || before(1, t) != after(1, t);
      if (t >= changed) changed_differs = changed_differs || before(1, t) != after(1, t);
      CHECK(before(0, t) == after(0, t));
    }
    INFO(naive::describe(config));
    CHECK(changed_differs);
    CHECK(earlier_differs == (config.causality == Causality::reference && config.mode != CoherenceMode::token));
  }
}

TEST_CASE("streamed coherence has the bits of the whole sequence", "[coherence]") {
  constexpr Index batch = 2, tokens = 29, features = 70;
  const auto hidden = naive::random_hidden<float>(batch, tokens, features, 9);
  for (const auto& config : naive::all_configs({1, 4, 100})) {
    INFO(naive::describe(config));
    CoherenceState<float> state;
    Tensor<float, 2> part;
    if (config.causality == Causality::reference) {
      CHECK_THROWS_AS(coherence_step(hidden, config, part, state), Error);
      continue;
    }
    const auto whole = compute_coherence(hidden, config);
    for (int repeat = 0; repeat < 2; ++repeat) {
      state.reset();
      Index t = 0;
      for (const Index count : {1, 1, 3, 7, 1, 16}) {
        Tensor<float, 3> piece(batch, count, features);
        for (Index b = 0; b < batch; ++b)
          for (Index i = 0; i < count; ++i)
            for (Index d = 0; d < features; ++d) piece(b, i, d) = hidden(b, t + i, d);
        coherence_step(piece, config, part, state);
        for (Index b = 0; b < batch; ++b)
          for (Index i = 0; i < count; ++i) CHECK(part(b, i) == whole(b, t + i));
        t += count;
      }
      CHECK(state.seen == tokens);
    }
  }
}

TEST_CASE("coherence and its gradient have the same bits for 1, 2 and 5 threads", "[coherence]") {
  const auto hidden = naive::random_hidden<float>(3, 150, 200, 10);
  Tensor<float, 2> dcoherence(3, 150);
  Rng rng(4);
  for (float& value : elements(dcoherence)) value = static_cast<float>(rng.normal());
  for (const auto& config : naive::all_configs({6})) {
    Tensor<float, 2> first_r, r;
    Tensor<float, 3> first_gradient, gradient;
    for (const int threads : {1, 2, 5}) {
      set_num_threads(threads);
      CoherenceCache<float> cache;
      coherence_forward(hidden, config, r, cache);
      gradient = zeros<float, 3>(shape_of(hidden));
      coherence_backward(dcoherence, hidden, config, cache, gradient);
      if (threads == 1) first_r = r, first_gradient = gradient;
      INFO(naive::describe(config) << ", " << threads << " threads");
      CHECK(naive::largest_difference(r, first_r) == 0);
      CHECK(naive::largest_difference(gradient, first_gradient) == 0);
    }
  }
  set_num_threads(1);
}

TEST_CASE("wrong coherence arguments say what is wrong", "[coherence]") {
  const auto hidden = naive::random_hidden<float>(2, 3, 4, 1);
  CHECK_THROWS_WITH(compute_local_coherence(hidden, 0), "CoherenceConfig: window: expected 1 to 1048576, got 0");
  CHECK_THROWS_AS(compute_cross_coherence(hidden, 0), Error);
  CoherenceCache<float> cache;
  Tensor<float, 2> coherence, wrong(2, 4);
  coherence_forward(hidden, {}, coherence, cache);
  auto gradient = zeros<float, 3>({2, 3, 4});
  CHECK_THROWS_WITH(coherence_backward(wrong, hidden, {}, cache, gradient),
                    "coherence_backward: dcoherence: expected [2, 3], got [2, 4]");
  CHECK_THROWS_AS(coherence_backward(coherence, hidden, {.mode = CoherenceMode::cross}, cache, gradient), Error);

  CHECK(compute_phase_coherence(Tensor<float, 3>(0, 3, 4)).size() == 0);
  CHECK(compute_local_coherence(Tensor<float, 3>(2, 0, 4)).size() == 0);
  CHECK(compute_phase_coherence(Tensor<float, 3>(2, 3, 0))(1, 2) == 0);
  CoherenceMode mode{};
  for (const auto each : all_coherence_modes) CHECK((parse(name_of(each), mode) && mode == each));
  CHECK_FALSE(parse("tokens", mode));
}

#include "rbar/audit/gradient_check.hpp"
#include "rbar/sheaf/token_energy.hpp"

#include "support/catch.hpp"
#include "support/differences.hpp"

#include <cmath>
#include <limits>

using namespace rbar;

namespace {

template <class T>
Tensor<T, 3> random_states(Index batch, Index tokens, Index dim, Rng& rng, double offset = 0, double deviation = 1) {
  Tensor<T, 3> x(batch, tokens, dim);
  for (T& value : elements(x)) value = static_cast<T>(rng.normal(offset, deviation));
  return x;
}

// The definition: all pairs, in double.
template <class T>
Tensor<double, 2> naive_energies(const Tensor<T, 3>& query, const Tensor<T, 3>& key) {
  Tensor<double, 2> energy(key.dimension(0), key.dimension(1));
  for (Index b = 0; b < key.dimension(0); ++b)
    for (Index i = 0; i < key.dimension(1); ++i) {
      double sum = 0;
      for (Index j = 0; j <= i; ++j)
        for (Index d = 0; d < key.dimension(2); ++d)
          sum += std::pow(static_cast<double>(query(b, i, d)) - static_cast<double>(key(b, j, d)), 2);
      energy(b, i) = sum / static_cast<double>(i + 1);
    }
  return energy;
}

TokenEnergyConfig config_of(Index d_model, Index energy_dim, RestrictionMapKind map = RestrictionMapKind::dense) {
  TokenEnergyConfig config;
  config.d_model = d_model;
  config.energy_dim = energy_dim;
  config.map = map;
  config.map_rank = 2;
  return config;
}

// Maps that differ, biases that are not 0.
template <class T>
TokenEnergy<T> shaken(const TokenEnergyConfig& config, Rng& rng) {
  TokenEnergy<T> energy(config, rng);
  for (const auto& parameter : parameters_of(energy))
    for (T& value : parameter.values()) value += static_cast<T>(0.2 * rng.normal());
  return energy;
}

template <class T>
double largest_relative_error(const Tensor<T, 2>& energy, const Tensor<double, 2>& expected) {
  double error = 0;
  for (Index i = 0; i < expected.size(); ++i)
    error =
        test::larger(error, std::abs(static_cast<double>(energy.data()[i]) - expected.data()[i]) / expected.data()[i]);
  return error;
}

}  // namespace

TEST_CASE("energies of queries and keys are the mean squared distances of the definition") {
  Rng rng(1);
  for (const auto& [batch, tokens, dim] : {Shape<3>{1, 1, 1}, {2, 7, 3}, {3, 33, 8}, {1, 130, 37}}) {
    INFO("batch " << batch << ", tokens " << tokens << ", dim " << dim);
    const auto query = random_states<double>(batch, tokens, dim, rng),
               key = random_states<double>(batch, tokens, dim, rng);
    ContextMoments moments;
    moments.start(batch, dim);
    Tensor<double, 3> mean(batch, tokens, dim);
    Tensor<double, 2> spread, energy;
    context_energies<double>(query, key, moments, mean, spread, energy);
    CHECK(largest_relative_error(energy, naive_energies(query, key)) < 1e-12);
    CHECK(moments.seen == tokens);
  }
}

TEST_CASE("a common offset leaves small energies what they are, in fp32") {
  // 4096 tokens of deviation .02 around 10: E is about .006, which raw fp32 sums of squares lose altogether.
  Rng rng(2);
  const auto query = random_states<float>(1, 4096, 8, rng, 10, 0.02),
             key = random_states<float>(1, 4096, 8, rng, 10, 0.02);
  ContextMoments moments;
  moments.start(1, 8);
  Tensor<float, 3> no_mean;
  Tensor<float, 2> spread, energy;
  context_energies<float>(query, key, moments, no_mean, spread, energy);
  CHECK(energy(0, 4095) == Approx(0.0064).epsilon(0.5));
  // The inputs are exact here, so what remains is the rounding of the result.
  CHECK(largest_relative_error(energy, naive_energies(query, key)) < 1e-6);
}

TEST_CASE("token energies equal the definition for every kind of map") {
  const auto kind = GENERATE(RestrictionMapKind::identity, RestrictionMapKind::diagonal, RestrictionMapKind::dense,
                             RestrictionMapKind::low_rank);
  INFO(name_of(kind));
  Rng rng(3);
  const auto hidden = random_states<float>(2, 19, 11, rng);
  const auto measure = shaken<float>(config_of(11, 5, kind), rng);
  TokenEnergy<float>::Cache cache;
  Tensor<float, 2> energy;
  measure.forward(hidden, energy, cache);
  CHECK(shape_of(energy) == Shape<2>{2, 19});
  CHECK(largest_relative_error(energy, naive_energies(cache.query, cache.key)) < 1e-6);

  // Hand-made: ρ(h) = A h + b.
  const Matrix<float> a = measure.rho_query.matrix();
  for (Index r = 0; r < a.rows(); ++r) {
    double q = static_cast<double>(measure.rho_query.bias(r));
    for (Index d = 0; d < a.cols(); ++d) q += static_cast<double>(a(r, d)) * static_cast<double>(hidden(1, 18, d));
    CHECK(static_cast<double>(cache.query(1, 18, r)) == Approx(q).margin(1e-5));
  }
}

TEST_CASE("maps that start tied give tokens that are alike no energy") {
  Rng rng(4);
  auto config = config_of(12, 6);
  TokenEnergy<double> measure(config, rng);
  Tensor<double, 3> hidden(1, 9, 12);
  hidden.setConstant(1.25);
  Tensor<double, 2> energy;
  TokenEnergy<double>::Cache cache;
  measure.forward(hidden, energy, cache);
  for (const double e : elements(energy)) CHECK(e == 0);

  config.start_tied = false;
  TokenEnergy<double>(config, rng).forward(hidden, energy, cache);
  for (const double e : elements(energy)) CHECK(e > 1e-3);
}

TEST_CASE("the gradient of the energies") {
  const auto kind = GENERATE(RestrictionMapKind::identity, RestrictionMapKind::diagonal, RestrictionMapKind::dense,
                             RestrictionMapKind::low_rank);
  const Index tokens = GENERATE(1, 13);
  INFO(name_of(kind) << ", tokens " << tokens);
  Rng rng(5);
  auto hidden = random_states<double>(2, tokens, 18, rng, 0.5);
  auto measure = shaken<double>(config_of(18, 17, kind), rng);
  TokenEnergy<double>::Cache cache;
  Tensor<double, 2> energy, weights(2, tokens);
  for (double& weight : elements(weights)) weight = rng.normal();
  measure.forward(hidden, energy, cache);
  auto gradient = zeros_like(measure);
  Tensor<double, 3> dhidden = zeros<double, 3>({2, tokens, 18});
  measure.backward(weights, hidden, cache, dhidden, gradient);

  std::vector<GradientPair> pairs{{"hidden", elements(hidden), elements(std::as_const(dhidden))}};
  rbar::detail::append_pairs(measure, gradient, pairs);
  const auto report = gradient_check(std::span<const GradientPair>(pairs), [&] {
    measure.forward(hidden, energy, cache);
    double sum = 0;
    for (Index i = 0; i < energy.size(); ++i) sum += weights.data()[i] * energy.data()[i];
    return sum;
  });
  INFO(report.worst);
  CHECK(report.error < 1e-6);

  // It adds to what is there.
  measure.forward(hidden, energy, cache);
  Tensor<double, 3> twice = dhidden;
  measure.backward(weights, hidden, cache, twice, gradient);
  for (Index i = 0; i < twice.size(); ++i) CHECK(twice.data()[i] == Approx(2 * dhidden.data()[i]).margin(1e-9));
}

TEST_CASE("gradients survive a common offset in fp32") {
  Rng rng(6);
  const auto query = random_states<float>(1, 512, 8, rng, 10, 0.02),
             key = random_states<float>(1, 512, 8, rng, 10, 0.02);
  const Tensor<double, 3> query64 = query.cast<double>(), key64 = key.cast<double>();
  const auto gradients = [&]<class T>(const Tensor<T, 3>& q, const Tensor<T, 3>& k) {
    ContextMoments moments;
    moments.start(1, 8);
    Tensor<T, 3> mean(1, 512, 8), dquery, dkey;
    Tensor<T, 2> spread, energy, ones(1, 512);
    ones.setConstant(T(1));
    context_energies<T>(q, k, moments, mean, spread, energy);
    context_energies_backward<T>(ones, q, k, mean, dquery, dkey);
    return std::pair(dquery, dkey);
  };
  const auto [dquery, dkey] = gradients(query, key);
  const auto [dquery64, dkey64] = gradients(query64, key64);
  // k̄ is handed over in fp32: its last bit at 10 is 1e-6.
  for (Index i = 0; i < dkey.size(); ++i) {
    CHECK(std::abs(static_cast<double>(dkey.data()[i]) - dkey64.data()[i]) < 1e-6);
    CHECK(std::abs(static_cast<double>(dquery.data()[i]) - dquery64.data()[i]) < 3e-6);
  }
}

TEST_CASE("streaming gives the bits of one pass, a copy of the state is a branch, and the future changes nothing") {
  Rng rng(7);
  const auto measure = shaken<float>(config_of(24, 9), rng);
  auto hidden = random_states<float>(2, 40, 24, rng, 3);
  TokenEnergy<float>::Cache cache;
  Tensor<float, 2> whole, part;
  measure.forward(hidden, whole, cache);
  TokenEnergy<float>::State state, branch;
  Index done = 0;
  for (const Index count : {1, 3, 7, 1, 17, 11}) {
    Tensor<float, 3> next(2, count, 24);
    for (Index b = 0; b < 2; ++b)
      for (Index i = 0; i < count; ++i)
        for (Index d = 0; d < 24; ++d) next(b, i, d) = hidden(b, done + i, d);
    branch = state;
    measure.step(next, part, branch);
    measure.step(next, part, state);
    for (Index b = 0; b < 2; ++b)
      for (Index i = 0; i < count; ++i) CHECK(part(b, i) == whole(b, done + i));
    done += count;
  }

  for (Index d = 0; d < 24; ++d) hidden(0, 25, d) += 100;
  Tensor<float, 2> changed;
  measure.forward(hidden, changed, cache);
  for (Index i = 0; i < 25; ++i) CHECK(changed(0, i) == whole(0, i));
  CHECK(changed(0, 25) != whole(0, 25));
  for (Index i = 0; i < 40; ++i) CHECK(changed(1, i) == whole(1, i));
}

TEST_CASE("a token is measured again with another state against the context as it was") {
  Rng rng(8);
  const auto measure = shaken<double>(config_of(10, 7), rng);
  const auto hidden = random_states<double>(2, 12, 10, rng);
  TokenEnergy<double>::Cache cache;
  Tensor<double, 2> energy;
  measure.forward(hidden, energy, cache);
  const Index moved[] = {3, 12, 23};
  Matrix<double> states(3, 10);
  for (Index n = 0; n < 3; ++n) states.row(n) = rows(hidden).row(moved[n]);
  double again[3];
  const auto as_view = [&] { return ConstMatrixView<double>(states.data(), 3, 10); };
  measure.remeasure(as_view(), moved, cache, again);
  for (Index n = 0; n < 3; ++n) CHECK(again[n] == Approx(energy.data()[moved[n]]).epsilon(1e-12));

  // With new states: the query is new, the keys are those of the cache.
  states.setRandom();
  measure.remeasure(as_view(), moved, cache, again);
  Tensor<double, 3> query = cache.query;
  for (Index n = 0; n < 3; ++n)
    measure.rho_query.forward(ConstMatrixView<double>(states.data() + n * 10, 1, 10),
                              MatrixView<double>(query.data() + moved[n] * 7, 1, 7));
  const auto expected = naive_energies(query, cache.key);
  for (Index n = 0; n < 3; ++n) CHECK(again[n] == Approx(expected.data()[moved[n]]).epsilon(1e-12));

  const Index outside[] = {24, 0, 0};
  CHECK_THROWS_AS(measure.remeasure(as_view(), outside, cache, again), Error);
  states(1, 1) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(measure.remeasure(as_view(), moved, cache, again), Error);
}

TEST_CASE("the same bits for every number of threads") {
  Rng rng(9);
  const auto measure = shaken<float>(config_of(40, 33), rng);
  const auto hidden = random_states<float>(5, 70, 40, rng);
  const auto run = [&](int threads) {
    set_num_threads(threads);
    TokenEnergy<float>::Cache cache;
    Tensor<float, 2> energy;
    measure.forward(hidden, energy, cache);
    auto gradient = zeros_like(measure);
    Tensor<float, 3> dhidden = zeros<float, 3>({5, 70, 40});
    measure.backward(view(std::as_const(energy)), hidden, cache, dhidden, gradient);
    set_num_threads(1);
    std::vector<float> bits(energy.data(), energy.data() + energy.size());
    bits.insert(bits.end(), dhidden.data(), dhidden.data() + dhidden.size());
    for (const auto& parameter : parameters_of(gradient))
      bits.insert(bits.end(), parameter.data, parameter.data + parameter.size);
    return bits;
  };
  const auto one = run(1);
  CHECK(run(2) == one);
  CHECK(run(7) == one);
}

TEST_CASE("token energies refuse what they cannot measure") {
  Rng rng(10);
  CHECK_THROWS_WITH((TokenEnergy<float>(config_of(0, 4), rng)), ContainsText("d_model"));
  CHECK_THROWS_WITH((TokenEnergy<float>(config_of(8, 0), rng)), ContainsText("energy_dim"));
  CHECK_THROWS_WITH((TokenEnergy<float>(config_of(8, 4, RestrictionMapKind::projection), rng)), ContainsText("map"));
  CHECK_THROWS_WITH((TokenEnergy<float>(config_of(1, 4, RestrictionMapKind::low_rank), rng)), ContainsText("map_rank"));
  const TokenEnergy<float> measure(config_of(8, 4), rng);
  TokenEnergy<float>::Cache cache;
  TokenEnergy<float>::State state;
  Tensor<float, 2> energy;
  CHECK_THROWS_WITH(measure.forward(random_states<float>(1, 3, 9, rng), energy, cache), ContainsText("hidden"));
  CHECK_THROWS_WITH(measure.forward(Tensor<float, 3>(2, 0, 8), energy, cache), ContainsText("at least one token"));
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto hidden = random_states<float>(2, 5, 8, rng);
    hidden(1, 2, 7) = poison;
    CHECK_THROWS_WITH(measure.forward(hidden, energy, cache), ContainsText("finite"));
    CHECK_THROWS_WITH(measure.step(hidden, energy, state), ContainsText("finite"));
    state.reset();
  }
  cache = {};
  auto gradient = zeros_like(measure);
  Tensor<float, 3> dhidden = zeros<float, 3>({2, 3, 8});
  const auto hidden = random_states<float>(2, 3, 8, rng);
  measure.step(hidden, energy, state);
  measure.step(hidden, energy, state);  // what it keeps is no beginning of a sequence
  CHECK_THROWS_WITH(measure.backward(view(std::as_const(energy)), hidden, state.cache, dhidden, gradient),
                    ContainsText("cache: expected that of forward"));
  state.reset();
  measure.step(random_states<float>(2, 5, 8, rng), energy, state);
  CHECK_THROWS_WITH(measure.step(random_states<float>(3, 5, 8, rng), energy, state), ContainsText("state"));
}

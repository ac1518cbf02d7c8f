#include "rbar/routing/mixer.hpp"

#include "rbar/audit/gradient_check.hpp"
#include "rbar/routing/simple_mixer.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <cmath>
#include <numbers>

using namespace rbar;

namespace {

Tensor<double, 3> random_tokens(Index batch, Index tokens, Index dim, Rng& rng) {
  Tensor<double, 3> x(batch, tokens, dim);
  for (double& value : elements(x)) value = rng.normal();
  return x;
}

template <class T>
CoherenceMixer<T> make_mixer(Index dim, bool learnable, Causality causality, std::uint64_t seed) {
  Rng rng(seed);
  CoherenceMixer<T> mixer({dim, learnable, causality}, rng);
  for (const auto& parameter : parameters_of(mixer))  // biases too
    for (T& value : parameter.values()) value += static_cast<T>(0.1 * rng.normal());
  return mixer;
}

// The equations of mixer.hpp, an element at a time.
std::vector<double> plain_mix(const CoherenceMixer<double>& mixer, const Tensor<double, 3>& h, Index b, Index t,
                              double c) {
  const Index tokens = h.dimension(1), dim = h.dimension(2);
  const bool pairs = mixer.config.causality == Causality::reference;
  const Index partner = pairs && t % 2 == 0 ? t + 1 : t - 1;
  std::vector<double> mixed(static_cast<std::size_t>(dim)), out = mixed;
  if (pairs && tokens < 2) {
    for (Index d = 0; d < dim; ++d) out[static_cast<std::size_t>(d)] = h(b, t, d);
    return out;
  }
  double gate = 0;
  const bool paired = partner >= 0 && partner < tokens;
  if (paired && mixer.config.learnable) {
    gate = mixer.gate.bias(0);
    for (Index d = 0; d < dim; ++d)
      gate += mixer.gate.weight(0, d) * h(b, std::min(t, partner), d) +
              mixer.gate.weight(0, dim + d) * h(b, std::max(t, partner), d);
    gate = 1 / (1 + std::exp(-gate));
  } else if (paired) {
    const auto phase = [](double x) { return 2 * std::numbers::pi / (1 + std::exp(-x)); };
    for (Index d = 0; d < dim; ++d) gate += std::cos(phase(h(b, t, d)) - phase(h(b, partner, d))) / double(dim);
    gate = std::abs(gate);
  }
  for (Index d = 0; d < dim; ++d) {
    double proposal = 0;
    for (Index e = 0; paired && mixer.config.learnable && e < dim; ++e) {
      if (pairs)
        proposal += (t % 2 == 0 ? mixer.W1 : mixer.W2).weight(d, e) * h(b, t, e);
      else
        proposal += mixer.W1.weight(d, e) * h(b, partner, e) + mixer.W2.weight(d, e) * h(b, t, e);
    }
    if (paired && !mixer.config.learnable) proposal = (h(b, t, d) + h(b, partner, d)) / 2;
    const double m = gate * proposal + (1 - gate) * h(b, t, d);
    mixed[static_cast<std::size_t>(d)] = c * m + (1 - c) * h(b, t, d);
  }
  for (Index d = 0; d < dim; ++d) {
    out[static_cast<std::size_t>(d)] = mixer.out_proj.bias(d);
    for (Index e = 0; e < dim; ++e)
      out[static_cast<std::size_t>(d)] += mixer.out_proj.weight(d, e) * mixed[static_cast<std::size_t>(e)];
  }
  return out;
}

struct Case {
  Index batch, tokens, dim;
};

}  // namespace

TEST_CASE("the mixer computes its equations for any subset of the tokens") {
  const bool learnable = GENERATE(true, false);
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const auto size = GENERATE(Case{2, 6, 4}, Case{3, 7, 5}, Case{1, 1, 3}, Case{2, 2, 17}, Case{1, 9, 1});
  INFO("learnable " << learnable << ", causal " << (causality == Causality::causal) << ", T " << size.tokens);
  Rng rng(7);
  const auto hidden = random_tokens(size.batch, size.tokens, size.dim, rng);
  const auto mixer = make_mixer<double>(size.dim, learnable, causality, 3);
  Tensor<double, 2> coherence(size.batch, size.tokens);
  for (double& value : elements(coherence)) value = rng.uniform();
  for (const double share : {1.0, 0.6, 0.0}) {
    std::vector<Index> selected;
    for (Index row = 0; row < coherence.size(); ++row)
      if (rng.uniform() < share) selected.push_back(row);
    Matrix<double> y(static_cast<Index>(selected.size()), size.dim);
    CoherenceMixer<double>::Cache cache;
    mixer.forward(hidden, selected, coherence, MatrixView<double>(y.data(), y.rows(), y.cols()), cache);
    double error = 0;
    for (std::size_t n = 0; n < selected.size(); ++n) {
      const Index b = selected[n] / size.tokens, t = selected[n] % size.tokens;
      const auto expected = plain_mix(mixer, hidden, b, t, coherence(b, t));
      for (Index d = 0; d < size.dim; ++d)
        error = test::larger(error, std::abs(y(static_cast<Index>(n), d) - expected[static_cast<std::size_t>(d)]));
    }
    CHECK(error < 1e-13);
  }
}

TEST_CASE("the mixer's gradients are those of its forward pass") {
  const bool learnable = GENERATE(true, false);
  const auto causality = GENERATE(Causality::causal, Causality::reference);
  const Index tokens = GENERATE(1, 5, 6);
  INFO("learnable " << learnable << ", causal " << (causality == Causality::causal) << ", T " << tokens);
  constexpr Index batch = 2, dim = 5;
  Rng rng(11);
  auto hidden = random_tokens(batch, tokens, dim, rng);
  auto mixer = make_mixer<double>(dim, learnable, causality, 5);
  Tensor<double, 2> coherence(batch, tokens);
  for (double& value : elements(coherence)) value = rng.uniform();
  std::vector<Index> selected;  // all but one token
  for (Index row = 0; row < batch * tokens; ++row)
    if (row != 3) selected.push_back(row);
  const Index count = static_cast<Index>(selected.size());
  Tensor<double, 2> y(count, dim), weights(count, dim);
  for (double& value : elements(weights)) value = rng.normal();

  CoherenceMixer<double>::Cache cache;
  mixer.forward(hidden, selected, coherence, rows(y), cache);
  auto gradient = zeros_like(mixer);
  auto dhidden = zeros<double, 3>({batch, tokens, dim});
  auto dcoherence = zeros<double, 2>({batch, tokens});
  mixer.backward(rows(std::as_const(weights)), hidden, selected, coherence, cache, dhidden, dcoherence, gradient);

  std::vector<GradientPair> pairs;
  detail::append_pairs(mixer, gradient, pairs);
  pairs.push_back({"hidden", elements(hidden), elements(std::as_const(dhidden))});
  pairs.push_back({"coherence", elements(coherence), elements(std::as_const(dcoherence))});
  const auto report = gradient_check(std::span<const GradientPair>(pairs),
                                     [&] {
                                       mixer.forward(hidden, selected, coherence, rows(y), cache);
                                       double sum = 0;
                                       for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * weights.data()[i];
                                       return sum;
                                     },
                                     {.samples_per_tensor = 0});
  INFO(report.worst);
  CHECK(report.error < 1e-7);
}

TEST_CASE("mixers are layers") {
  Rng rng(2);
  const auto hidden = random_tokens(2, 7, 6, rng);
  CHECK(gradient_check(make_mixer<double>(6, true, Causality::causal, 1), hidden).error < 1e-7);
  CHECK(gradient_check(make_mixer<double>(6, true, Causality::reference, 1), hidden).error < 1e-7);
  CHECK(gradient_check(SimpleMixer<double>(6, rng), hidden).error < 1e-7);
}

TEST_CASE("a streamed mixer gives the numbers of the full pass, whatever the pieces") {
  const bool learnable = GENERATE(true, false);
  constexpr Index batch = 2, tokens = 13, dim = 6;
  Rng rng(21);
  const auto hidden = random_tokens(batch, tokens, dim, rng);
  const auto mixer = make_mixer<double>(dim, learnable, Causality::causal, 5);
  CoherenceMixer<double>::Cache cache;
  Tensor<double, 3> whole;
  mixer.forward(hidden, whole, cache);
  for (const Index piece : {1, 2, 5}) {
    CoherenceMixer<double>::State state;
    for (Index first = 0; first < tokens; first += piece) {
      const Index count = std::min(piece, tokens - first);
      Tensor<double, 3> part(batch, count, dim), out(batch, count, dim);
      std::vector<Index> every(static_cast<std::size_t>(batch * count));
      std::iota(every.begin(), every.end(), Index{0});
      for (Index b = 0; b < batch; ++b) std::copy_n(&hidden(b, first, 0), count * dim, &part(b, 0, 0));
      Tensor<double, 2> ones(batch, count);
      ones.setConstant(1.0);
      mixer.step(part, every, ones, rows(out), state, cache);
      for (Index b = 0; b < batch; ++b)
        for (Index i = 0; i < count * dim; ++i)
          CHECK(out.data()[b * count * dim + i] == Approx((&whole(b, first, 0))[i]).margin(1e-12));
    }
  }
}

TEST_CASE("causal mixing never looks ahead; the reference pairs do") {
  constexpr Index tokens = 8, dim = 4, changed = 5;
  Rng rng(9);
  const auto hidden = random_tokens(1, tokens, dim, rng);
  const auto leak = [&](Causality causality) {
    const auto mixer = make_mixer<double>(dim, true, causality, 5);
    auto other = hidden;
    other(0, changed, 2) += 1;
    CoherenceMixer<double>::Cache cache;
    Tensor<double, 3> before, after;
    mixer.forward(hidden, before, cache);
    mixer.forward(other, after, cache);
    double largest = 0;
    for (Index i = 0; i < changed * dim; ++i)
      largest = test::larger(largest, std::abs(before.data()[i] - after.data()[i]));
    return largest;
  };
  CHECK(leak(Causality::causal) == 0);
  CHECK(leak(Causality::reference) > 1e-3);
}

TEST_CASE("mixers say what is wrong with their arguments") {
  Rng rng(1);
  CHECK_THROWS_AS(CoherenceMixer<float>({0, true, Causality::causal}, rng), Error);
  const auto mixer = make_mixer<double>(4, true, Causality::causal, 1);
  CoherenceMixer<double>::Cache cache;
  CoherenceMixer<double>::State state;
  Tensor<double, 3> y;
  CHECK_THROWS_AS(mixer.forward(random_tokens(1, 3, 5, rng), y, cache), Error);
  const auto hidden = random_tokens(1, 3, 4, rng);
  Matrix<double> out(1, 4);
  const MatrixView<double> out_view(out.data(), 1, 4);
  const std::vector<Index> outside{3};
  CHECK_THROWS_AS(mixer.forward(hidden, outside, Tensor<double, 2>(1, 3), out_view, cache), Error);
  const std::vector<Index> one{1};
  CHECK_THROWS_AS(mixer.forward(hidden, one, Tensor<double, 2>(1, 2), out_view, cache), Error);
  const auto pairs = make_mixer<double>(4, true, Causality::reference, 1);
  CHECK_THROWS_AS(pairs.step(hidden, one, Tensor<double, 2>(1, 3), out_view, state, cache), Error);
}

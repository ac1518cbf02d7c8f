#include "rbar/train/loss.hpp"

#include "rbar/core/random.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <limits>
#include <vector>

using namespace rbar;

namespace {

// The textbook: every logit through std::exp in double, no maximum taken out when it need not be.
template <class T>
double naive(const Tensor<T, 3>& logits, const Tensor<Token, 2>& targets, Tensor<double, 3>& gradient) {
  const Index vocabulary = logits.dimension(2);
  ensure_shape(gradient, shape_of(logits));
  gradient.setZero();
  double sum = 0;
  Index counted = 0;
  for (Index i = 0; i < targets.size(); ++i) counted += targets.data()[i] != ignore_index;
  for (Index i = 0; i < targets.size(); ++i) {
    const Token target = targets.data()[i];
    if (target == ignore_index) continue;
    const T* row = logits.data() + i * vocabulary;
    double largest = row[0], total = 0;
    for (Index v = 0; v < vocabulary; ++v) largest = std::max(largest, static_cast<double>(row[v]));
    for (Index v = 0; v < vocabulary; ++v) total += std::exp(row[v] - largest);
    sum += std::log(total) + largest - row[target];
    for (Index v = 0; v < vocabulary; ++v)
      gradient.data()[i * vocabulary + v] =
          (std::exp(row[v] - largest) / total - (v == target ? 1.0 : 0.0)) / static_cast<double>(counted);
  }
  return sum / static_cast<double>(counted);
}

template <class T>
void compare(Shape<3> shape, double deviation, double tolerance, std::uint64_t seed) {
  INFO("batch " << shape[0] << " tokens " << shape[1] << " vocabulary " << shape[2] << " deviation " << deviation
                << " seed " << seed);
  Rng rng(seed);
  Tensor<T, 3> logits(shape[0], shape[1], shape[2]), gradient;
  Tensor<Token, 2> targets(shape[0], shape[1]);
  for (T& x : elements(logits)) x = static_cast<T>(rng.normal(0, deviation));
  for (Token& target : elements(targets))
    target = rng.below(5) == 0 ? ignore_index : static_cast<Token>(rng.below(static_cast<std::uint64_t>(shape[2])));
  targets(0, 0) = 0;

  Tensor<double, 3> expected_gradient;
  const double expected = naive(logits, targets, expected_gradient);
  const auto input = view(std::as_const(logits));
  const auto target_view = view(std::as_const(targets));
  const double loss = cross_entropy<T>(input, target_view, &gradient);
  CHECK(loss == Approx(expected).epsilon(tolerance));
  CHECK(cross_entropy<T>(input, target_view, nullptr) == loss);
  double error = 0, largest = 0;
  for (Index i = 0; i < gradient.size(); ++i) {
    error = test::larger(error, std::abs(static_cast<double>(gradient.data()[i]) - expected_gradient.data()[i]));
    largest = std::max(largest, std::abs(expected_gradient.data()[i]));
  }
  CHECK(error <= tolerance * std::max(largest, 1e-300));

  // In place: the logits' own tensor takes the gradient.
  CHECK(cross_entropy<T>(input, target_view, &logits) == loss);
  CHECK(std::equal(gradient.data(), gradient.data() + gradient.size(), logits.data()));
}

}  // namespace

TEST_CASE("cross-entropy and its gradient are the textbook's, for all sizes and tails") {
  for (Index vocabulary : {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 65, 256, 1025, 5003}) {
    const std::uint64_t seed = 100 + static_cast<std::uint64_t>(vocabulary);
    compare<float>({2, 3, vocabulary}, 2.0, 2e-6, seed);
    compare<double>({3, 2, vocabulary}, 2.0, 1e-13, seed);
    compare<float>({1, 5, vocabulary}, 40.0, 1e-5, seed);  // logits of ±100: x − max itself rounds at 1e-5
  }
  compare<float>({1, 2, 50257}, 3.0, 2e-6, 5);
}

TEST_CASE("cross-entropy survives extreme logits") {
  Tensor<float, 3> logits(1, 2, 20), gradient;
  Tensor<Token, 2> targets(1, 2);
  const auto loss_of = [&] {
    return cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(targets)), &gradient);
  };
  logits.setConstant(-3e38f);
  logits(0, 0, 3) = 3e38f;
  logits(0, 1, 3) = 3e38f;
  targets.setConstant(3);
  CHECK(loss_of() == 0.0);
  CHECK(gradient(0, 0, 3) == 0.0f);
  targets(0, 1) = 4;
  CHECK(loss_of() == Approx(3e38));
  CHECK(gradient(0, 1, 3) == 0.5f);
  CHECK(gradient(0, 1, 4) == -0.5f);

  // A vocabulary entry that is switched off.
  logits.setZero();
  logits(0, 0, 7) = -std::numeric_limits<float>::infinity();
  logits(0, 1, 19) = -std::numeric_limits<float>::infinity();
  CHECK(loss_of() == Approx(std::log(19.0)));
  CHECK(gradient(0, 0, 7) == 0.0f);

  // Nothing that is not a number passes silently, wherever it stands in the row.
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (Index v = 0; v < 20; ++v) {
      logits.setZero();
      logits(0, 1, v) = bad;
      INFO("bad logit " << bad << " at " << v);
      CHECK_FALSE(std::isfinite(loss_of()));
    }
}

TEST_CASE("cross-entropy says which target is wrong and ignores what it is told to") {
  Tensor<float, 3> logits(2, 2, 5), gradient;
  logits.setRandom();
  Tensor<Token, 2> targets(2, 2);
  const auto loss_of = [&] {
    return cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(targets)), &gradient);
  };
  targets.setConstant(4);
  targets(1, 0) = 5;
  CHECK_THROWS_WITH(loss_of(), "cross_entropy: targets: expected tokens in [0, 5) or -1 (ignored), got 5 at element 2");
  targets(1, 0) = -2;
  CHECK_THROWS_AS(loss_of(), Error);
  targets.setConstant(ignore_index);
  CHECK_THROWS_AS(loss_of(), Error);
  targets(1, 1) = 2;
  loss_of();
  for (Index i = 0; i < 15; ++i) CHECK(gradient.data()[i] == 0.0f);
  CHECK(gradient(1, 1, 2) < 0);
  Tensor<Token, 2> other(2, 3);
  other.setZero();
  CHECK_THROWS_WITH(cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(other)), nullptr),
                    "cross_entropy: targets: expected [2, 2], got [2, 3]");
}

TEST_CASE("cross-entropy has the same bits for every number of threads") {
  Rng rng(9);
  Tensor<float, 3> logits(4, 61, 517), one, many;
  Tensor<Token, 2> targets(4, 61);
  for (float& x : elements(logits)) x = static_cast<float>(rng.normal());
  for (Token& target : elements(targets)) target = static_cast<Token>(rng.below(517));
  const auto loss_of = [&](Tensor<float, 3>& gradient) {
    return cross_entropy<float>(view(std::as_const(logits)), view(std::as_const(targets)), &gradient);
  };
  const double first = loss_of(one);
  set_num_threads(3);
  const double second = loss_of(many);
  set_num_threads(1);
  CHECK(first == second);
  CHECK(std::equal(one.data(), one.data() + one.size(), many.data()));
}

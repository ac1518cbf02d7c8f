#include "rbar/core/random.hpp"
#include "rbar/simd/causal_conv.hpp"
#include "rbar/simd/selective_scan.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>
#include <vector>

using rbar::Rng;
using namespace rbar::simd;

namespace {

template <class T>
std::vector<T> random_values(Index count, Rng& rng, double mean = 0) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(rng.normal(mean, 1));
  return values;
}

template <class T>
std::pair<T, T> softplus_of(T r) {
  T value[lanes<T>], slope[lanes<T>];
  const auto result = softplus(broadcast(r));
  store(value, result.value);
  store(slope, result.slope);
  return {value[0], slope[0]};
}

// One block of channels: everything that a call reads and writes.
template <class T>
struct Problem {
  static constexpr Index stride = 71;
  Index tokens, channels, states;
  std::vector<T> log_rate, skip, step, input, gate, selection, memory;

  Problem(Index tokens_, Index channels_, Index states_, Rng& rng)
      : tokens(tokens_),
        channels(channels_),
        states(states_),
        log_rate(random_values<T>(channels * states, rng)),
        skip(random_values<T>(channels, rng)),
        step(random_values<T>(tokens * stride, rng, -1)),
        input(random_values<T>(tokens * stride, rng)),
        gate(random_values<T>(tokens * stride, rng)),
        selection(random_values<T>(tokens * stride, rng)),
        memory(static_cast<std::size_t>(ScanScratch<T>::size(states))) {}

  ScanBlock<T> block(Index first = 0) const {
    return {tokens - first,
            channels,
            states,
            log_rate.data(),
            skip.data(),
            step.data() + first * stride,
            input.data() + first * stride,
            gate.data() + first * stride,
            selection.data() + first * stride,
            stride,
            stride,
            stride};
  }
};

}  // namespace

TEST_CASE("softplus and its slope, everywhere") {
  for (double r = -80; r <= 80; r += 0.0173) {
    const double value = r > 0 ? r + std::log1p(std::exp(-r)) : std::log1p(std::exp(r)), slope = 1 / (1 + std::exp(-r));
    const auto single = softplus_of(static_cast<float>(r));
    const double at = static_cast<double>(static_cast<float>(r));  // what float was given
    const double rounded = at > 0 ? at + std::log1p(std::exp(-at)) : std::log1p(std::exp(at));
    CHECK(static_cast<double>(single.first) == Approx(rounded).epsilon(5e-7));
    CHECK(static_cast<double>(single.second) == Approx(1 / (1 + std::exp(-at))).epsilon(5e-7));
    CHECK(softplus_of(r).first == Approx(value).epsilon(1e-14));
    CHECK(softplus_of(r).second == Approx(slope).epsilon(1e-14));
  }
  for (const float r : {1e3f, 1e30f, std::numeric_limits<float>::infinity()}) {
    CHECK(softplus_of(r).first == r);
    CHECK(softplus_of(r).second == 1);
    CHECK(softplus_of(-r).first == 0);
    CHECK(softplus_of(-r).second == 0);
  }
  CHECK(std::isnan(softplus_of(std::numeric_limits<float>::quiet_NaN()).first));
}

TEST_CASE("decay is 2^t below 0") {
  for (float t = 0; t > -130; t -= 0.0371f) {
    float result[lanes<float>];
    store(result, decay(broadcast(t)));
    const double expected = std::exp2(static_cast<double>(t));
    CHECK(std::abs(static_cast<double>(result[0]) - expected) <= 2.5e-7 * expected + 1e-37);
  }
  for (const float t : {-1e4f, -1e30f, -std::numeric_limits<float>::infinity()}) {
    float result[lanes<float>];
    store(result, decay(broadcast(t)));
    CHECK(result[0] == 0);
  }
}

TEMPLATE_TEST_CASE("lanes of many registers are summed at once", "", float, double) {
  constexpr Index L = lanes<TestType>;
  Rng rng(1);
  const auto values = random_values<TestType>(L * L, rng);
  for (const Index count : {L, L - 1, Index{1}}) {
    TestType sums[L];
    store(sums, detail::sum_lanes(values.data(), count));
    for (Index i = 0; i < count; ++i) {
      double expected = 0;
      for (Index j = 0; j < L; ++j) expected += static_cast<double>(values[static_cast<std::size_t>(i * L + j)]);
      CHECK(static_cast<double>(sums[i]) == Approx(expected).margin(1e-5));
    }
  }
}

TEST_CASE("a scan can be cut anywhere, to the bit, and writes only its own channels") {
  Rng rng(2);
  for (const auto& [tokens, channels, states] :
       {std::tuple<Index, Index, Index>{80, 64, 16}, {70, 19, 5}, {33, 1, 1}}) {
    const Problem<float> problem(tokens, channels, states, rng);
    auto memory = problem.memory;
    std::vector<float> state(static_cast<std::size_t>(scan_state_size(states))), again = state;
    std::vector<float> whole(problem.step.size(), 7.0f), parts = whole;
    selective_scan<float>(problem.block(), state.data(), nullptr, whole.data(), memory.data());
    for (Index begin = 0; begin < tokens;) {
      auto part = problem.block(begin);
      part.tokens = std::min<Index>(part.tokens, 1 + static_cast<Index>(rng.below(40)));
      selective_scan<float>(part, again.data(), nullptr, parts.data() + begin * problem.stride, memory.data());
      begin += part.tokens;
    }
    CHECK(whole == parts);
    CHECK(state == again);
    for (Index t = 0; t < tokens; ++t)
      for (Index c = channels; c < problem.stride; ++c)
        REQUIRE(whole[static_cast<std::size_t>(t * problem.stride + c)] == 7.0f);
  }
}

TEST_CASE("the scan's backward makes the forward pass's output again") {
  Rng rng(3);
  const Problem<float> problem(75, 37, 6, rng);
  const auto dout = random_values<float>(75 * problem.stride, rng);
  auto memory = problem.memory;
  const Index size = scan_state_size(6);
  std::vector<float> state(static_cast<std::size_t>(size)), borders(state.size() * 3), out(dout.size(), 7.0f);
  std::vector<float> again = out, dstep = out, dinput = out, dgate = out, dselection(75 * 12), dlog_rate(state.size());
  std::vector<float> dskip(scan_channels);
  selective_scan<float>(problem.block(), state.data(), borders.data(), out.data(), memory.data());
  selective_scan_backward<float>(
      problem.block(), borders.data(), dout.data(), again.data(),
      {dstep.data(), dinput.data(), dgate.data(), dselection.data(), dlog_rate.data(), dskip.data()}, memory.data());
  for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(again[i] == Approx(out[i]).margin(1e-6));
  // The gradients of the block's channels are written, and nothing beyond them.
  for (const auto* gradient : {&dstep, &dinput, &dgate})
    for (std::size_t i = 0; i < gradient->size(); ++i) REQUIRE(((*gradient)[i] == 7.0f) == (i % problem.stride >= 37));
}

TEST_CASE("the causal convolution is its sum, from a history too") {
  Rng rng(4);
  for (const auto& [tokens, channels, taps] : {std::tuple<Index, Index, Index>{9, 64, 4}, {1, 3, 16}, {5, 33, 1}}) {
    const Index stride = 70, kept = taps - 1;
    const auto weight = random_values<double>(channels * taps, rng), bias = random_values<double>(channels, rng);
    const auto all = random_values<double>((kept + tokens) * stride, rng);  // history, then the tokens
    for (const bool with_history : {false, true}) {
      const double* input = all.data() + kept * stride;
      std::vector<double> output(static_cast<std::size_t>(tokens * stride), 7.0);
      causal_conv<double>({tokens, channels, taps, weight.data(), bias.data(), input, stride,
                           with_history ? all.data() : nullptr, stride},
                          output.data(), stride);
      for (Index t = 0; t < tokens; ++t)
        for (Index c = 0; c < stride; ++c) {
          double v = c < channels ? bias[static_cast<std::size_t>(c)] : 0;
          for (Index k = 0; c < channels && k < taps; ++k)
            if (t - kept + k >= 0 || with_history)
              v += weight[static_cast<std::size_t>(c * taps + k)] * all[static_cast<std::size_t>((t + k) * stride + c)];
          const double expected = c < channels ? v / (1 + std::exp(-v)) : 7.0;
          REQUIRE(output[static_cast<std::size_t>(t * stride + c)] == Approx(expected).margin(1e-13));
        }
    }
  }
}

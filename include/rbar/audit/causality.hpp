// Does a model look at what it is to predict? Change one token and compare every output before it, and
// every output of the other sequences of the batch: in a causal model none may move.
//   leak = max |Δoutput| / max |output|
// A leak gives away itself in training as a loss that is too good to be true.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace rbar {
inline namespace audit {

struct CausalityOptions {
  Index length = 64;  // tokens of a sequence; at most the model's max_seq_len, where it has one
  Index batch = 2;
  Index trials = 16;  // positions that are changed, spread over the sequence; 0: every position
  std::uint64_t seed = 1;
};

struct CausalityReport {
  static constexpr double tolerance = 1e-6;  // rounding of another order of summation stays below

  double leak = 0;              // max |Δoutput| / max |output| where nothing may change; infinite for a NaN
  double largest_output = 0;    // max |output|
  Index changed = -1;           // the worst case: the position that was changed,
  Index seen = -1;              // the position whose output moved,
  bool other_sequence = false;  // and whether that was in another sequence of the batch
  Index trials = 0;

  bool passed() const { return leak <= tolerance; }
  std::string text() const {
    std::string result = passed() ? "causal: " : "NOT causal: ";
    result += std::to_string(trials) + " tokens changed, outputs before them moved by " + detail::describe(leak) +
              " of the largest";
    if (!passed())
      result += "; changing token " + std::to_string(changed) + " moves the output at " + std::to_string(seen) +
                (other_sequence ? " of another sequence" : "");
    return result;
  }
};

}  // namespace audit

namespace detail {

// Where two runs differ although sequence `b` was changed at position `t` only.
template <class T>
void compare_outputs(const Tensor<T, 3>& before, const Tensor<T, 3>& after, Index b, Index t, CausalityReport& report) {
  const Index batch = before.dimension(0), length = before.dimension(1), dim = before.dimension(2);
  for (Index sequence = 0; sequence < batch; ++sequence)
    for (Index position = 0; position < (sequence == b ? t : length); ++position) {
      const Index first = (sequence * length + position) * dim;
      for (Index i = first; i < first + dim; ++i) {
        double difference = std::abs(static_cast<double>(before.data()[i]) - static_cast<double>(after.data()[i]));
        if (std::isnan(difference)) difference = std::numeric_limits<double>::infinity();
        if (difference <= report.leak) continue;
        report.leak = difference;  // divided by the largest output at the end
        report.changed = t;
        report.seen = position;
        report.other_sequence = sequence != b;
      }
    }
}

// run(output) computes; change(b, t, rng) alters the input at one token, restore() undoes that.
template <class T, class Run, class Change, class Restore>
CausalityReport probe_causality(const CausalityOptions& options, Run&& run, Change&& change, Restore&& restore) {
  CausalityReport report;
  Rng rng(options.seed, /*stream=*/2);
  Tensor<T, 3> before, after;
  run(before);
  for (const T value : elements(before))
    report.largest_output = std::max(report.largest_output, std::abs(static_cast<double>(value)));
  report.trials = options.trials > 0 ? std::min(options.trials, options.length) : options.length;
  for (Index trial = 0; trial < report.trials; ++trial) {
    // One random position from each of `trials` equal stretches; the last token of all in the last one.
    const Index first = trial * options.length / report.trials;
    const Index last = (trial + 1) * options.length / report.trials;
    const Index random = first + static_cast<Index>(rng.below(static_cast<std::uint64_t>(last - first)));
    const Index t = trial + 1 == report.trials ? options.length - 1 : random;
    const Index b = trial % options.batch;
    change(b, t, rng);
    run(after);
    restore();
    compare_outputs(before, after, b, t, report);
  }
  if (report.leak > 0) report.leak /= report.largest_output;
  if (std::isnan(report.leak)) report.leak = std::numeric_limits<double>::infinity();
  return report;
}

inline void require_options(const CausalityOptions& options) {
  require(options.length >= 1, "causality", "length", "at least 1", options.length);
  require(options.batch >= 1, "causality", "batch", "at least 1", options.batch);
  require(options.trials >= 0, "causality", "trials", "at least 0", options.trials);
}

}  // namespace detail

inline namespace audit {

// Random tokens through a language model whose config names its vocab_size (at least 2).
template <LanguageModel M>
CausalityReport causality(const M& model, CausalityOptions options = {}) {
  using T = typename M::Scalar;
  if constexpr (requires { model.config.max_seq_len; })
    options.length = std::min(options.length, static_cast<Index>(model.config.max_seq_len));
  detail::require_options(options);
  const auto vocabulary = static_cast<Index>(model.config.vocab_size);
  require(vocabulary >= 2, "causality", "vocab_size", "at least 2", vocabulary);

  Tensor<Token, 2> tokens(options.batch, options.length);
  Rng rng(options.seed, /*stream=*/1);
  for (Token& token : elements(tokens)) token = static_cast<Token>(rng.below(static_cast<std::uint64_t>(vocabulary)));
  const Tensor<Token, 2> original = tokens;
  return detail::probe_causality<T>(
      options,
      [&](Tensor<T, 3>& logits) {
        typename M::Cache cache;
        model.forward(tokens, logits, cache);
      },
      [&](Index b, Index t, Rng& random) {  // another token, each of the others equally likely
        const auto step = 1 + static_cast<Index>(random.below(static_cast<std::uint64_t>(vocabulary - 1)));
        tokens(b, t) = static_cast<Token>((tokens(b, t) + step) % vocabulary);
      },
      [&] { tokens = original; });
}

// The same for a layer [batch, tokens, features] -> [batch, tokens, any], with N(0, 1) inputs.
template <Layer L>
CausalityReport causality(const L& layer, Index features, CausalityOptions options = {}) {
  using T = typename L::Scalar;
  detail::require_options(options);
  Tensor<T, 3> x(options.batch, options.length, features);
  Rng rng(options.seed, /*stream=*/1);
  for (T& value : elements(x)) value = static_cast<T>(rng.normal());
  const Tensor<T, 3> original = x;
  return detail::probe_causality<T>(
      options,
      [&](Tensor<T, 3>& y) {
        typename L::Cache cache;
        layer.forward(x, y, cache);
      },
      [&](Index b, Index t, Rng& random) {
        for (Index d = 0; d < features; ++d) x(b, t, d) = static_cast<T>(random.normal());
      },
      [&] { x = original; });
}

}  // namespace audit
}  // namespace rbar

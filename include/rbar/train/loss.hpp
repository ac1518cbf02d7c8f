// Cross-entropy of next-token prediction, with its gradient from the same pass over the logits.
//   loss = mean over counted rows of  log Σ_v exp(x_v) − x_target        (nats per token)
//   dx_v = (softmax(x)_v − [v = target]) / counted rows
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/simd/math.hpp"

#include <algorithm>
#include <cmath>

namespace rbar {

// A position with this target counts neither in the loss nor in the gradient.
inline constexpr Token ignore_index = -1;

namespace detail {

template <class T>
T row_maximum(const T* RBAR_RESTRICT row, Index count) {
  constexpr Index lanes = simd::lanes<T>;
  auto largest = simd::broadcast(std::numeric_limits<T>::lowest());
  Index i = 0;
  for (; i + lanes <= count; i += lanes) largest = simd::max(largest, simd::load(row + i));
  T result = simd::reduce_max(largest);
  for (; i < count; ++i) result = std::max(result, row[i]);
  return result;
}

// Σ exp(x − shift), and the terms themselves in `terms` unless that is null (it may be `row`).
// Lanes are emptied into a double every `block` elements: 50,000 terms lose nothing.
template <class T>
double sum_of_exponentials(const T* row, Index count, T shift, T* terms) {
  constexpr Index lanes = simd::lanes<T>;
  constexpr Index block = 64 * lanes;
  const auto minus_shift = simd::broadcast(-shift);
  double total = 0;
  for (Index first = 0; first < count; first += block) {
    const Index last = std::min(first + block, count);
    auto sum = simd::zero<T>();
    Index i = first;
    for (; i + lanes <= last; i += lanes) {
      const auto term = simd::exp(simd::load(row + i) + minus_shift);
      if (terms) simd::store(terms + i, term);
      sum = sum + term;
    }
    if (i < last) {
      // Lanes beyond the row hold −infinity after the shift, hence 0.
      const auto term =
          simd::exp(simd::load_partial(row + i, last - i, -std::numeric_limits<T>::infinity()) + minus_shift);
      if (terms) simd::store_partial(terms + i, term, last - i);
      sum = sum + term;
    }
    total += static_cast<double>(simd::reduce_add(sum));
  }
  return total;
}

template <class T>
void scale_row(T* RBAR_RESTRICT row, Index count, T factor) {
  constexpr Index lanes = simd::lanes<T>;
  const auto factors = simd::broadcast(factor);
  Index i = 0;
  for (; i + lanes <= count; i += lanes) simd::store(row + i, simd::load(row + i) * factors);
  for (; i < count; ++i) row[i] *= factor;
}

// Number of targets that count; every other one must be `ignore_index`.
inline Index count_targets(ConstTensorView<Token, 2> targets, Index vocabulary) {
  Index counted = 0;
  for (Index i = 0; i < targets.size(); ++i) {
    const Token target = targets.data()[i];
    if (target == ignore_index) continue;
    if (target < 0 || target >= vocabulary) [[unlikely]]
      throw Error("cross_entropy", "targets", "tokens in [0, " + std::to_string(vocabulary) + ") or -1 (ignored)",
                  std::to_string(target) + " at element " + std::to_string(i));
    ++counted;
  }
  require(counted > 0, "cross_entropy", "targets", "at least one that is not ignored", "none");
  return counted;
}

}  // namespace detail

// Mean loss in nats over the targets that are not `ignore_index`; infinite or NaN logits give an
// infinite or NaN loss. logits [batch, tokens, vocabulary], targets [batch, tokens]. The gradient by
// the logits is written to `dlogits` unless that is null; it may be the tensor that `logits` views,
// which saves a buffer of the largest size in the model.
template <class T>
double cross_entropy(ConstTensorView<T, 3> logits, ConstTensorView<Token, 2> targets, Tensor<T, 3>* dlogits) {
  const Index vocabulary = logits.dimension(2);
  require_shape("cross_entropy", "targets", targets, {logits.dimension(0), logits.dimension(1)});
  const Index counted = detail::count_targets(targets, vocabulary);
  if (dlogits) ensure_shape(*dlogits, shape_of(logits));
  const T* const input = logits.data();
  T* const output = dlogits ? dlogits->data() : nullptr;

  constexpr Index elements_per_chunk = 16384;
  const Index rows_per_chunk = std::max<Index>(1, elements_per_chunk / vocabulary);
  const double sum = parallel_sum(targets.size(), rows_per_chunk, [&](Index begin, Index end) {
    double partial = 0;
    for (Index r = begin; r < end; ++r) {
      const T* const row = input + r * vocabulary;
      T* const gradient = output ? output + r * vocabulary : nullptr;
      const Token target = targets.data()[r];
      if (target == ignore_index) {
        if (gradient) std::fill(gradient, gradient + vocabulary, T(0));
        continue;
      }
      const T target_logit = row[target];  // read first: the gradient may overwrite it
      const T largest = detail::row_maximum(row, vocabulary);
      const double total = detail::sum_of_exponentials(row, vocabulary, largest, gradient);
      partial += std::log(total) + static_cast<double>(largest) - static_cast<double>(target_logit);
      if (!gradient) continue;
      detail::scale_row(gradient, vocabulary, static_cast<T>(1.0 / (total * static_cast<double>(counted))));
      gradient[target] -= static_cast<T>(1.0 / static_cast<double>(counted));
    }
    return partial;
  });
  return sum / static_cast<double>(counted);
}

}  // namespace rbar

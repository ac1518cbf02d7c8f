// How well a model predicts a text.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/train/data.hpp"
#include "rbar/train/loss.hpp"

#include <cmath>
#include <numbers>

namespace rbar {

struct EvaluationOptions {
  Index window = 128;          // tokens of context at most
  Index batch_size = 16;       // windows at a time; changes speed and memory only
  double bytes_per_token = 1;  // of the text as UTF-8: 1 for a byte tokenizer
};

struct Evaluation {
  double nats = 0;           // mean per predicted token
  double bits_per_byte = 0;  // nats / ln 2 / bytes per token: comparable between tokenizers
  double perplexity = 0;     // exp(nats)
  Index predicted_tokens = 0;
};

// Mean loss over the whole text in consecutive windows (see ConsecutiveWindows); no dropout.
template <LanguageModel M>
Evaluation evaluate(const M& model, TokenSpan tokens, const EvaluationOptions& options = {}) {
  require(options.bytes_per_token > 0, "evaluate", "bytes_per_token", "above 0", options.bytes_per_token);
  ConsecutiveWindows windows(tokens, options.window);
  TokenBatch batch;
  Tensor<typename M::Scalar, 3> logits;
  typename M::Cache cache;
  Evaluation result;
  double sum = 0;
  while (windows.next(options.batch_size, batch)) {
    model.forward(view(std::as_const(batch.inputs)), logits, cache);
    const auto targets = view(std::as_const(batch.targets));
    const Tensor<typename M::Scalar, 3>& computed = logits;
    sum += cross_entropy<typename M::Scalar>(view(computed), targets, nullptr) * static_cast<double>(targets.size());
    result.predicted_tokens += targets.size();
  }
  result.nats = sum / static_cast<double>(result.predicted_tokens);
  result.bits_per_byte = result.nats / std::numbers::ln2 / options.bytes_per_token;
  result.perplexity = std::exp(result.nats);
  return result;
}

}  // namespace rbar

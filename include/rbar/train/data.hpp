// From one long text of tokens to batches: inputs are a window, targets the same window one token on.
#pragma once

#include "rbar/core/random.hpp"
#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace rbar {

using TokenSpan = std::span<const Token>;

// A text and where it is cut: the first tokens train, those after them validate.
class TokenDataset {
 public:
  TokenDataset() = default;
  // The first ⌊train_share · n⌋ tokens train, all others validate.
  explicit TokenDataset(std::vector<Token> tokens, double train_share = 0.9) : tokens_(std::move(tokens)) {
    require(train_share > 0 && train_share <= 1, "TokenDataset", "train_share", "in (0, 1]", train_share);
    train_count_ = static_cast<std::size_t>(train_share * static_cast<double>(tokens_.size()));
    validation_count_ = tokens_.size() - train_count_;
  }
  // Exactly these many; what is left of the text is not used.
  TokenDataset(std::vector<Token> tokens, Index train_count, Index validation_count) : tokens_(std::move(tokens)) {
    require(train_count >= 0 && validation_count >= 0 &&
                train_count <= static_cast<Index>(tokens_.size()) - validation_count,
            "TokenDataset", "train_count + validation_count", "at most " + std::to_string(tokens_.size()) + " tokens",
            std::to_string(train_count) + " + " + std::to_string(validation_count));
    train_count_ = static_cast<std::size_t>(train_count);
    validation_count_ = static_cast<std::size_t>(validation_count);
  }

  TokenSpan tokens() const { return tokens_; }
  TokenSpan train() const { return tokens().first(train_count_); }
  TokenSpan validation() const { return tokens().subspan(train_count_, validation_count_); }

 private:
  std::vector<Token> tokens_;
  std::size_t train_count_ = 0;
  std::size_t validation_count_ = 0;
};

struct TokenBatch {
  Tensor<Token, 2> inputs;   // [batch, window]
  Tensor<Token, 2> targets;  // [batch, window]: targets(b, t) follows inputs(b, t) in the text
};

namespace detail {
inline void copy_window(TokenSpan tokens, std::size_t start, Index row, TokenBatch& batch) {
  const auto window = static_cast<std::size_t>(batch.inputs.dimension(1));
  const auto source = tokens.subspan(start, window + 1);
  const Index offset = row * batch.inputs.dimension(1);
  std::copy_n(source.data(), window, batch.inputs.data() + offset);
  std::copy_n(source.data() + 1, window, batch.targets.data() + offset);
}
}  // namespace detail

// Windows at random places. Where window number i starts depends on the seed and i alone, so `drawn` is
// the whole position in the data, the order is the same for every model, and 16 windows are the same
// windows as 2 × 8.
struct RandomWindows {
  std::uint64_t seed = 1;
  std::uint64_t drawn = 0;  // windows handed out so far

  void next(TokenSpan tokens, Index batch_size, Index window, TokenBatch& batch) {
    require(batch_size > 0, "RandomWindows", "batch size", "at least 1", batch_size);
    require(window > 0, "RandomWindows", "window", "at least 1", window);
    if (static_cast<Index>(tokens.size()) <= window) [[unlikely]]
      throw Error("RandomWindows", "tokens", "more than one window of " + std::to_string(window),
                  std::to_string(tokens.size()));
    ensure_shape(batch.inputs, {batch_size, window});
    ensure_shape(batch.targets, {batch_size, window});
    constexpr std::uint64_t purpose = 0x77696e646f777321;  // keeps these numbers apart from dropout's
    for (Index row = 0; row < batch_size; ++row) {
      Rng rng(seed ^ purpose, drawn++);
      const auto start = rng.below(tokens.size() - static_cast<std::size_t>(window));
      detail::copy_window(tokens, static_cast<std::size_t>(start), row, batch);
    }
  }
};

// The text from its start, window after window, the last one as short as what remains: every token
// but the first is predicted exactly once. next() gives batches until it returns false; windows of
// another length never share a batch, so nothing is padded.
struct ConsecutiveWindows {
  TokenSpan tokens;
  Index window = 0;
  Index predicted = 0;  // tokens handed out as targets so far

  ConsecutiveWindows(TokenSpan tokens_, Index window_) : tokens(tokens_), window(window_) {
    require(window > 0, "ConsecutiveWindows", "window", "at least 1", window);
    require(tokens.size() > 1, "ConsecutiveWindows", "tokens", "at least 2", tokens.size());
  }

  bool next(Index batch_size, TokenBatch& batch) {
    require(batch_size > 0, "ConsecutiveWindows", "batch size", "at least 1", batch_size);
    const Index left = static_cast<Index>(tokens.size()) - 1 - predicted;
    if (left == 0) return false;
    const Index length = std::min(window, left);
    const Index rows = std::min(batch_size, left / length);
    ensure_shape(batch.inputs, {rows, length});
    ensure_shape(batch.targets, {rows, length});
    for (Index row = 0; row < rows; ++row, predicted += length)
      detail::copy_window(tokens, static_cast<std::size_t>(predicted), row, batch);
    return true;
  }
};

}  // namespace rbar

// Continues a text, token by token, with any language model.
#pragma once

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"
#include "rbar/model/cgt_verify.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <variant>
#include <vector>

namespace rbar {

struct GenerateOptions {
  Index max_new_tokens = 100;
  double temperature = 1;  // 0: always the most likely token (greedy)
  Index top_k = 0;         // > 0: only the k most likely tokens
  double top_p = 1;        // < 1: only the most likely tokens that together reach this probability
  Token eos = -1;          // stop after this token; -1: none
  std::uint64_t seed = 1;
  bool use_cache = true;  // false runs the whole context for every token: same numbers, slower

  void validate() const {
    constexpr const char* where = "GenerateOptions";
    require(max_new_tokens >= 0, where, "max_new_tokens", "at least 0", max_new_tokens);
    require(temperature >= 0 && std::isfinite(temperature), where, "temperature", "at least 0", temperature);
    require(top_k >= 0, where, "top_k", "at least 0", top_k);
    require(top_p > 0 && top_p <= 1, where, "top_p", "0 < p <= 1", top_p);
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("max_new_tokens", max_new_tokens);
    visit("temperature", temperature);
    visit("top_k", top_k);
    visit("top_p", top_p);
    visit("eos", eos);
    visit("seed", seed);
    visit("use_cache", use_cache);
  }
};

// Draws tokens from softmax(logits / temperature), cut to the top k and then to the nucleus of mass p
// (Holtzman et al., arXiv:1904.09751). Ties go to the smaller token.
class Sampler {
 public:
  explicit Sampler(const GenerateOptions& options) : options_(options), rng_(options.seed) { options.validate(); }

  // Errors: no logits, or one that is NaN or +infinity.
  template <class T>
  Token operator()(std::span<const T> logits) {
    require(!logits.empty(), "Sampler", "logits", "at least one", logits.size());
    for (const T logit : logits)
      require(logit < std::numeric_limits<T>::infinity(), "Sampler", "logits", "numbers below infinity", logit);
    if (options_.temperature == 0)
      return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());

    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), Token{0});
    const auto logit_of = [&](Token token) { return logits[static_cast<std::size_t>(token)]; };
    const auto likelier = [&](Token a, Token b) {
      return logit_of(a) != logit_of(b) ? logit_of(a) > logit_of(b) : a < b;
    };
    std::size_t kept = order_.size();
    if (options_.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options_.top_k));
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept), order_.end(), likelier);

    weight_.resize(kept);
    const double largest = static_cast<double>(logit_of(order_[0]));
    double total = 0;
    for (std::size_t i = 0; i < kept; ++i)
      total += weight_[i] = std::exp((static_cast<double>(logit_of(order_[i])) - largest) / options_.temperature);
    if (options_.top_p < 1) {
      double mass = 0;
      std::size_t nucleus = 0;
      while (nucleus < kept && mass < options_.top_p * total) mass += weight_[nucleus++];
      kept = std::max<std::size_t>(1, nucleus);
      total = mass;
    }
    double remaining = rng_.uniform() * total;
    for (std::size_t i = 0; i + 1 < kept; ++i)
      if ((remaining -= weight_[i]) < 0) return order_[i];
    return order_[kept - 1];
  }

 private:
  GenerateOptions options_;
  Rng rng_;
  std::vector<Token> order_;
  std::vector<double> weight_;
};

// A model that answers for its logits, or refuses (cgt_verify.hpp).
template <class M>
concept VerifiedModel = requires(const M& model, ConstTensorView<Token, 2> tokens, typename M::State& state) {
  { model.infer(tokens, InferOptions{}, state) } -> std::same_as<CGTOutput<typename M::Scalar>>;
};

// The tokens that follow `prompt`, `eos` included where it came; on_token(token) hears of each at once. Where a
// verified model refuses to go on, the text ends: what comes back is then shorter than asked, without eos. A model with
// a limited context (config.max_seq_len) goes on when it is full: it forgets the older half. Errors: an empty prompt,
// bad options, and what the model refuses.
template <LanguageModel M, class OnToken>
std::vector<Token> generate(const M& model, std::span<const Token> prompt, const GenerateOptions& options,
                            OnToken&& on_token) {
  require(!prompt.empty(), "generate", "prompt", "at least one token", prompt.size());
  std::size_t longest = std::numeric_limits<std::size_t>::max();
  if constexpr (requires { model.config.max_seq_len; }) longest = static_cast<std::size_t>(model.config.max_seq_len);

  Sampler sample(options);
  std::vector<Token> sequence(prompt.begin(), prompt.end());
  std::size_t first = sequence.size() > longest ? sequence.size() - longest : 0;  // of the context
  std::size_t seen = first;                                                       // tokens the state has
  typename M::State state;
  typename M::Cache cache;
  Tensor<typename M::Scalar, 3> logits;
  for (Index i = 0; i < options.max_new_tokens; ++i) {
    if (sequence.size() - first > longest) {
      first = seen = sequence.size() - std::max<std::size_t>(1, longest / 2);
      state = typename M::State{};
    }
    const std::size_t begin = options.use_cache ? seen : first;
    const ConstTensorView<Token, 2> tokens =
        view(std::as_const(sequence).data() + begin, 1, static_cast<Index>(sequence.size() - begin));
    Token token;
    if constexpr (VerifiedModel<M>) {
      if (!options.use_cache) state = typename M::State{};
      const auto output = model.infer(tokens, InferOptions{}, state);
      const auto* emission = std::get_if<Emission>(&output.at(0, tokens.dimension(1) - 1));
      if (!emission) break;
      token = sample(output.logits(*emission));
    } else {
      if (options.use_cache)
        model.step(tokens, logits, state, StepLogits::last);
      else
        model.forward(tokens, logits, cache);
      const auto vocabulary = static_cast<std::size_t>(logits.dimension(2));
      token = sample(std::span<const typename M::Scalar>(elements(logits)).last(vocabulary));
    }
    seen = sequence.size();
    sequence.push_back(token);
    on_token(token);
    if (token == options.eos) break;
  }
  return {sequence.begin() + static_cast<std::ptrdiff_t>(prompt.size()), sequence.end()};
}

template <LanguageModel M>
std::vector<Token> generate(const M& model, std::span<const Token> prompt, const GenerateOptions& options = {}) {
  return generate(model, prompt, options, [](Token) {});
}

}  // namespace rbar

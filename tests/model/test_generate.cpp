#include "model/transformer_support.hpp"
#include "rbar/model/generate.hpp"

#include <map>

using namespace rbar;
using namespace transformer_test;

namespace {

std::map<Token, double> frequencies(const std::vector<float>& logits, const GenerateOptions& options) {
  Sampler sample(options);
  std::map<Token, double> share;
  constexpr int draws = 20000;
  for (int i = 0; i < draws; ++i) share[sample(std::span(logits))] += 1.0 / draws;
  return share;
}

// 4σ of a share of 20,000 draws
constexpr double noise = 4 * 0.5 / 141;

}  // namespace

TEST_CASE("the sampler draws from the softmax, cut as asked") {
  // Probabilities ½, ¼, ⅛, ⅛ of tokens 2, 0, 1, 3.
  const std::vector<float> logits = {std::log(2.0f), 0.0f, std::log(4.0f), 0.0f};
  GenerateOptions options;
  auto share = frequencies(logits, options);
  CHECK(std::abs(share[2] - 0.5) < noise);
  CHECK(std::abs(share[0] - 0.25) < noise);
  CHECK(std::abs(share[1] - 0.125) < noise);

  options.temperature = 0.5;  // squares the odds: 16 : 4 : 1 : 1
  share = frequencies(logits, options);
  CHECK(std::abs(share[2] - 16.0 / 22) < noise);

  options = {};
  options.top_k = 2;
  share = frequencies(logits, options);
  CHECK(share.size() == 2);
  CHECK(std::abs(share[2] - 2.0 / 3) < noise);

  options = {};
  options.top_p = 0.6;  // ½ is not enough, ½ + ¼ is
  share = frequencies(logits, options);
  CHECK(share.size() == 2);
  CHECK(std::abs(share[2] - 2.0 / 3) < noise);
  options.top_p = 1e-9;
  CHECK(frequencies(logits, options).size() == 1);

  options = {};
  options.temperature = 0;
  CHECK(frequencies(logits, options).begin()->first == 2);
  const std::vector<float> tie = {1, 3, 3};
  CHECK(frequencies(tie, options).begin()->first == 1);
}

TEST_CASE("the sampler refuses bad options and bad logits") {
  const auto refuses = [](auto&& change) {
    GenerateOptions options;
    change(options);
    CHECK_THROWS_AS(Sampler(options), Error);
  };
  refuses([](GenerateOptions& o) { o.temperature = -1; });
  refuses([](GenerateOptions& o) { o.top_p = 0; });
  refuses([](GenerateOptions& o) { o.top_p = 1.5; });
  refuses([](GenerateOptions& o) { o.top_k = -1; });
  refuses([](GenerateOptions& o) { o.max_new_tokens = -1; });
  Sampler sample{GenerateOptions{}};
  const std::vector<float> bad = {0, std::numeric_limits<float>::quiet_NaN()};
  CHECK_THROWS_AS(sample(std::span(bad)), Error);
  const std::vector<float> masked = {-std::numeric_limits<float>::infinity(), 0};
  CHECK(sample(std::span(masked)) == 1);
}

TEST_CASE("generation: the cache changes nothing, the seed decides, eos ends, a full context goes on") {
  for (const auto& config : configs()) {
    INFO(describe(config));
    const auto model = random_model<float>(config, 1);
    const std::vector<Token> prompt = {3, 1, 4};
    GenerateOptions options;
    options.max_new_tokens = 40;  // far beyond the 16 tokens of context
    std::vector<Token> heard;
    const auto tokens = generate(model, std::span(prompt), options, [&](Token token) { heard.push_back(token); });
    CHECK(tokens.size() == 40);
    CHECK(heard == tokens);
    CHECK(generate(model, std::span(prompt), options) == tokens);
    options.use_cache = false;
    CHECK(generate(model, std::span(prompt), options) == tokens);
    options.seed = 2;
    CHECK(generate(model, std::span(prompt), options) != tokens);

    options.seed = 1;
    options.use_cache = true;
    options.eos = tokens[5];
    const auto ended = generate(model, std::span(prompt), options);
    CHECK(ended.back() == options.eos);
    CHECK(ended.size() <= 6);
    CHECK(std::equal(ended.begin(), ended.end(), tokens.begin()));

    // A prompt longer than the context: its end counts.
    const std::vector<Token> long_prompt(50, 2);
    CHECK(generate(model, std::span(long_prompt), options).size() >= 1);
    CHECK_THROWS_AS(generate(model, std::span<const Token>()), Error);
  }
}

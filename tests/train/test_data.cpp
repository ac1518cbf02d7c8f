#include "rbar/train/data.hpp"

#include "rbar/train/evaluate.hpp"
#include "support/catch.hpp"
#include "support/tiny_language_model.hpp"

#include <numeric>
#include <set>

using namespace rbar;

namespace {

std::vector<Token> counting(Index count) {
  std::vector<Token> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

}  // namespace

TEST_CASE("a data set is cut where it was told to") {
  TokenDataset dataset(counting(105));
  CHECK(dataset.train().size() == 94);
  CHECK(dataset.validation().size() == 11);
  CHECK(dataset.validation().front() == 94);
  CHECK(TokenDataset(counting(10), 1.0).validation().empty());
  TokenDataset counted(counting(100), 60, 30);
  CHECK(counted.train().back() == 59);
  CHECK(counted.validation().front() == 60);
  CHECK(counted.validation().size() == 30);
  CHECK_THROWS_AS(TokenDataset(counting(100), 60, 41), Error);
  CHECK_THROWS_AS(TokenDataset(counting(100), 1.5), Error);
}

TEST_CASE("random windows shift by one, reach every start and restart anywhere") {
  const auto tokens = counting(12);
  RandomWindows windows{.seed = 4};
  TokenBatch batch;
  std::set<Token> starts;
  for (int i = 0; i < 50; ++i) {
    windows.next(tokens, 4, 9, batch);
    for (Index row = 0; row < 4; ++row) {
      starts.insert(batch.inputs(row, 0));
      for (Index t = 0; t < 9; ++t) {
        CHECK(batch.inputs(row, t) == batch.inputs(row, 0) + t);
        CHECK(batch.targets(row, t) == batch.inputs(row, t) + 1);
      }
    }
  }
  CHECK(starts == std::set<Token>{0, 1, 2});
  CHECK(windows.drawn == 200);

  // The position is one number, and a batch of 6 is the same windows as three of 2.
  const auto long_text = counting(100000);
  TokenBatch six, two;
  RandomWindows a{.seed = 7, .drawn = 1000}, b = a, other_seed{.seed = 8, .drawn = 1000};
  a.next(long_text, 6, 5, six);
  for (Index part = 0; part < 3; ++part) {
    b.next(long_text, 2, 5, two);
    for (Index row = 0; row < 2; ++row) CHECK(two.inputs(row, 0) == six.inputs(2 * part + row, 0));
  }
  CHECK(a.drawn == b.drawn);
  other_seed.next(long_text, 2, 5, two);
  CHECK(two.inputs(0, 0) != six.inputs(0, 0));

  CHECK_THROWS_WITH(a.next(counting(9), 1, 9, batch),
                    "RandomWindows: tokens: expected more than one window of 9, got 9");
  CHECK_THROWS_AS(a.next(long_text, 0, 9, batch), Error);
}

TEST_CASE("consecutive windows predict every token but the first exactly once, in order") {
  for (const Index count : {2, 5, 8, 9, 10, 16, 17, 40, 41, 99})
    for (const Index window : {1, 3, 8})
      for (const Index batch_size : {1, 2, 7}) {
        INFO(count << " tokens, window " << window << ", batch " << batch_size);
        const auto tokens = counting(count);
        ConsecutiveWindows windows(tokens, window);
        TokenBatch batch;
        Token expected = 0;
        bool in_order = true, full = true;
        while (windows.next(batch_size, batch)) {
          full = full && (batch.inputs.dimension(1) == window || windows.predicted == count - 1);
          for (Index i = 0; i < batch.inputs.size(); ++i) {
            in_order = in_order && batch.inputs.data()[i] == expected && batch.targets.data()[i] == expected + 1;
            ++expected;
          }
        }
        CHECK(in_order);
        CHECK(full);
        CHECK(expected == count - 1);
      }
  CHECK_THROWS_AS(ConsecutiveWindows(TokenSpan{}, 4), Error);
}

TEST_CASE("evaluation is the mean over all predicted tokens, whatever the batch") {
  Rng rng(3);
  const test::TinyLanguageModel<double> model(test::TinyConfig{}, rng);
  std::vector<Token> tokens(50);
  for (Token& token : tokens) token = static_cast<Token>(rng.below(11));
  double sum = 0;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    Tensor<Token, 2> input(1, 1);
    input(0, 0) = tokens[i];
    Tensor<double, 3> logits;
    test::TinyLanguageModel<double>::Cache cache;
    model.forward(view(std::as_const(input)), logits, cache);
    double total = 0;
    for (const double x : elements(logits)) total += std::exp(x);
    sum += std::log(total) - logits(0, 0, tokens[i + 1]);
  }
  for (const Index batch_size : {1, 3, 100}) {
    const Evaluation result = evaluate(model, tokens, {.window = 8, .batch_size = batch_size, .bytes_per_token = 2});
    CHECK(result.predicted_tokens == 49);
    CHECK(result.nats == Approx(sum / 49).epsilon(1e-12));
    CHECK(result.bits_per_byte == Approx(sum / 49 / std::log(2.0) / 2).epsilon(1e-12));
    CHECK(result.perplexity == Approx(std::exp(sum / 49)).epsilon(1e-12));
  }
}
